package kubectl

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite testdata")

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(ms float64) metav1.MicroTime {
	return metav1.NewMicroTime(start.Add(time.Duration(ms * float64(time.Millisecond))))
}

func pointer(ms float64) *metav1.MicroTime {
	t := at(ms)
	return &t
}

func recorded() *v1alpha1.PortMigration {
	return &v1alpha1.PortMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "kubevirt-migrate-vm-x7k2p-5c1d9a3e", CreationTimestamp: metav1.NewTime(start)},
		Spec: v1alpha1.PortMigrationSpec{
			VMI: v1alpha1.ObjectName{Name: "web1"}, Migration: v1alpha1.ObjectName{Name: "kubevirt-migrate-vm-x7k2p"},
			Source: v1alpha1.MigrationEnd{Node: "node1", Pod: v1alpha1.ObjectName{Name: "virt-launcher-web1-4xjzq"}},
			Target: v1alpha1.MigrationEnd{Node: "node2", Pod: v1alpha1.ObjectName{Name: "virt-launcher-web1-b8w2n"}},
			Ports:  []v1alpha1.MigratedPort{{Network: "default", Name: "vm/shop/web1/default", MAC: "02:00:0a:f4:00:07"}},
		},
		Status: v1alpha1.PortMigrationStatus{
			Phase: "Committed", Reason: "TargetReady", Message: "the VM runs on the target", Result: v1alpha1.MigrationSucceeded,
			Stages: []v1alpha1.Stage{
				{Name: v1alpha1.StageScheduled, Time: at(0)}, {Name: v1alpha1.StagePrepared, Time: at(5.2)}, {Name: v1alpha1.StageActivated, Time: at(6207.9)},
				{Name: v1alpha1.StageReady, Time: at(6318)}, {Name: v1alpha1.StageCommitted, Time: at(6320.1)}, {Name: v1alpha1.StageCompleted, Time: at(7402.5)},
			},
			Source: &v1alpha1.Observation{
				LastFrame: pointer(6190.4), Stopped: pointer(6190.9), FramesLost: new(int64), Connections: &v1alpha1.Connections{Began: pointer(1700), Ended: pointer(6195), Left: 2},
			},
			Target: &v1alpha1.Observation{
				Attached: pointer(1530), Announced: pointer(6201.3), FirstFrame: pointer(6240), ActivatedBy: v1alpha1.ActivatedBySignal, Opened: pointer(6192), Unblocked: pointer(6193.2), FramesQueued: new(int64(21)),
				Connections: &v1alpha1.Connections{Moved: 412, Replaced: 7, Refused: 1},
			},
			Interruption: &v1alpha1.Interruption{Milliseconds: "10.9", UncertaintyMilliseconds: "0.4"},
		},
	}
}

func TestStory(t *testing.T) {
	running := recorded()
	running.Status.Stages, running.Status.Source, running.Status.Interruption = running.Status.Stages[:2], nil, nil
	running.Status.Target = &v1alpha1.Observation{Attached: pointer(1530)}
	running.Status.Phase, running.Status.Reason, running.Status.Result = "Prepared", "TargetScheduled", v1alpha1.MigrationRunning
	running.Status.Message = "migration kubevirt-migrate-vm-x7k2p from node1 to node2: the target may attach"
	failed := recorded()
	failed.Status.Stages = []v1alpha1.Stage{
		{Name: v1alpha1.StageScheduled, Time: at(0)}, {Name: v1alpha1.StagePrepared, Time: at(5.2)}, {Name: v1alpha1.StageRolledBack, Time: at(900)}, {Name: v1alpha1.StageCompleted, Time: at(1000)},
	}
	failed.Status.Source, failed.Status.Target, failed.Status.Interruption = nil, nil, nil
	failed.Status.Phase, failed.Status.Reason, failed.Status.Message, failed.Status.Result = "RolledBack", "TargetGone", "the target pod has gone or finished", v1alpha1.MigrationFailed
	empty := recorded()
	empty.Status = v1alpha1.PortMigrationStatus{}
	for name, pm := range map[string]*v1alpha1.PortMigration{"succeeded": recorded(), "running": running, "failed": failed, "empty": empty} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			story{pm}.write(&b)
			golden(t, name+".txt", b.String())
			for line := range strings.Lines(b.String()) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.Contains(line, ": ") { // a message may be longer
					t.Errorf("%d columns: %s", n, line)
				}
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got (go test ./pkg/kubectl -update rewrites it):\n%s", diff)
	}
}

func TestInterruption(t *testing.T) {
	for want, i := range map[string]*v1alpha1.Interruption{
		"-": nil, "3 ms ?": {Milliseconds: "3"}, "3 ms": {Milliseconds: "3", UncertaintyMilliseconds: "0.0"}, "3 ms ±0.5": {Milliseconds: "3", UncertaintyMilliseconds: "0.5"},
	} {
		if got := interruption(i); got != want {
			t.Errorf("interruption(%+v) = %q, want %q", i, got, want)
		}
	}
}

func TestFormat(t *testing.T) {
	var f format
	if err := f.Set("xml"); err == nil || !strings.Contains(err.Error(), formats) {
		t.Errorf("-o xml: %v, want an error that names what there is", err)
	}
}

// TestShowWide: there is no wider form of it, which the help does not promise either.
func TestShowWide(t *testing.T) {
	root := Command("test")
	root.SetArgs([]string{"migration", "show", "web1", "-o", "wide"})
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	if err := root.Execute(); err == nil || !strings.Contains(err.Error(), "-o wide is not of this command") {
		t.Errorf("-o wide: %v, want an error that says what there is", err)
	}
	show, _, err := root.Find([]string{"migration", "show"})
	if err != nil {
		t.Fatal(err)
	}
	if usage := show.Flags().Lookup("output").Usage; strings.Contains(usage, string(wide)) {
		t.Errorf("the help offers %q", usage)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	tab := &table{out: &b}
	tab.rows([]string{"A", "B", "C"}, []string{"longer", "→", "x"})
	tab.rows([]string{"s", "t", "u"})
	want := "A        B   C\nlonger   →   x\ns        t   u\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
