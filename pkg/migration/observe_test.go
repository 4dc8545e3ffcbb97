package migration

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

// objects are all that Observe takes.
type objects struct {
	Pods     []*corev1.Pod
	VMI      *kubevirtv1.VirtualMachineInstance
	VMIMs    []*kubevirtv1.VirtualMachineInstanceMigration
	Ports    map[string]*nbdb.LogicalSwitchPort
	Bindings []*sbdb.PortBinding
}

func (o objects) observe() Snapshot { return Observe(o.Pods, o.VMI, o.VMIMs, o.Ports, o.Bindings) }

func exampleObjects() objects {
	pod := newLauncher("p2", "uid-p2", "V1", epoch)
	pod.Labels[kubevirtv1.MigrationJobLabel] = "M1"
	pod.Spec.NodeName = "n2"
	pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] = "2026-11-20 21:47:51 +0000 UTC m=+12.5"
	setNetworks(pod, []string{"blue"})
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: "V1"}}
	vmi.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork(),
		{Name: "blue", NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: "nad"}}}}
	at := metav1.Time{Time: epoch.Add(time.Minute)}
	vmi.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{MigrationUID: "M1", SourcePod: "p1", TargetPod: "p2",
		TargetNodeDomainReadyTimestamp: &at, Mode: kubevirtv1.MigrationPostCopy, Completed: true}
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m1", UID: "M1"},
		Spec: kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: "vm"}}
	return objects{
		Pods: []*corev1.Pod{pod, nil}, VMI: vmi, VMIMs: []*kubevirtv1.VirtualMachineInstanceMigration{nil, vmim},
		Ports: map[string]*nbdb.LogicalSwitchPort{"gone": nil, "default": {
			Name: "vm/default", Options: map[string]string{ident.OptionRequestedChassis: "n1,n2", ident.OptionActivationStrategy: "rarp"},
			ExternalIDs: map[string]string{ident.KeyMigration: "M1", ident.KeyMigrationSource: "n1", ident.KeyMigrationTarget: "n2"}}},
		Bindings: []*sbdb.PortBinding{nil, {LogicalPort: "vm/default", RequestedAdditionalChassis: []string{"uuid"}, Options: map[string]string{
			ident.BindingActivated: "n2,n3", ident.OptionRequestedChassis: "n1,n2"}}},
	}
}

func TestObserve(t *testing.T) {
	got := exampleObjects().observe()
	want := Snapshot{
		VMI: VMI{Namespace: "ns", Name: "vm", UID: "V1"},
		Launchers: []Launcher{{Name: "p2", UID: "uid-p2", Chassis: "n2", Job: "M1", Created: epoch, Ready: true,
			ReadyAt: time.Date(2026, 11, 20, 21, 47, 51, 0, time.UTC), Networks: []string{"blue", "default"}}},
		Migrations: []Migration{{UID: "M1", Name: "m1", Seen: true, Succeeded: true, PostCopy: true, Ready: true, ReadyAt: epoch.Add(time.Minute),
			SourcePod: "p1", TargetPod: "p2"}},
		Ports: []Port{{Name: "vm/default", Network: "default", State: PortState{Requested: "n1,n2", Strategy: "rarp", Stamp: Stamp{"M1", "n1", "n2"}},
			Activated: []ident.ChassisName{"n2", "n3"}, Additional: true}}, // not synced: the stamp has not come through
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A migration's own state counts once it says that it is about this migration; the VMI's may be about another.
func TestObserveMigrations(t *testing.T) {
	failed := kubevirtv1.VirtualMachineInstanceMigrationState{Failed: true, Completed: true, AbortStatus: kubevirtv1.MigrationAbortSucceeded}
	about := func(uid types.UID) *kubevirtv1.VirtualMachineInstanceMigrationState {
		s := failed
		s.MigrationUID = uid
		return &s
	}
	for _, c := range []struct {
		name      string
		vmi, vmim *kubevirtv1.VirtualMachineInstanceMigrationState
		want      []Migration
	}{
		{"no state", nil, nil, []Migration{{UID: "M1", Name: "m1", Seen: true}}},
		{"the migration's, without UID", nil, about(""), []Migration{{UID: "M1", Name: "m1", Seen: true}}},
		{"the migration's", nil, about("M1"), []Migration{{UID: "M1", Name: "m1", Seen: true, Failed: true, Aborted: true}}},
		{"the VMI's", about("M1"), nil, []Migration{{UID: "M1", Name: "m1", Seen: true, Failed: true, Aborted: true}}},
		{"the VMI's of an older one", about("M0"), nil, []Migration{{UID: "M0", Failed: true, Aborted: true}, {UID: "M1", Name: "m1", Seen: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := exampleObjects()
			o.VMI.Status.MigrationState, o.VMIMs[1].Status.MigrationState = c.vmi, c.vmim
			if diff := cmp.Diff(c.want, o.observe().Migrations); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestLast(t *testing.T) {
	stamp := Stamp{"M1", "n1", "n2"}
	for _, c := range []struct {
		name  string
		ports []PortState
		want  Phase
	}{
		{"no ports", nil, ""},
		{"never migrated", []PortState{{Requested: "n1"}}, ""},
		{"under way", []PortState{{Requested: "n2", Stamp: stamp}, {Requested: "n1,n2", Strategy: "rarp", Stamp: stamp}}, ""},
		{"committed", []PortState{{Requested: "n2", Stamp: stamp}, {Requested: "godwit-none", Stamp: stamp}}, Committed},
		{"rolled back", []PortState{{Requested: "godwit-none", Stamp: stamp}, {Requested: "n1", Stamp: stamp}}, RolledBack},
		{"elsewhere since", []PortState{{Requested: "n3", Stamp: stamp}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s Snapshot
			for _, p := range c.ports {
				s.Ports = append(s.Ports, Port{State: p})
			}
			got, phase := s.Last()
			if phase != c.want || (phase != "") != (got == stamp) {
				t.Errorf("got %v %q, want %q", got, phase, c.want)
			}
		})
	}
}

func TestNetworks(t *testing.T) {
	vmi := exampleObjects().VMI
	for _, c := range []struct {
		name, annotation string
		want             []string
	}{
		{"none", "", []string{"default"}},
		{"KubeVirt's", `[{"name":"nad","namespace":"ns","mac":"02:00:00:00:00:01","interface":"pod16477688c0e"}]`, []string{"blue", "default"}}, // sha256("blue")
		{"empty list", "[]", []string{"default"}},
		{"old names", `[{"name":"nad","interface":"net1"}]`, nil},
		{"text form", "ns/nad@pod16477688c0e", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := newLauncher("p", "p", "V1", epoch)
			pod.Annotations[nad.Annotation] = c.annotation
			if got := networks(pod, vmi); !slices.Equal(got, c.want) || (got == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// FuzzObserve: no object makes Observe or Decide panic, and the invariants of every write hold.
func FuzzObserve(f *testing.F) {
	for _, o := range []objects{{}, exampleObjects()} {
		b, err := json.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o objects
		if json.Unmarshal(b, &o) != nil {
			return
		}
		if err := total(o, Env{Now: epoch, Chassis: map[ident.ChassisName]bool{"n1": true, "n2": true}}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestArbitrary is the fuzzer's complement: objects that are well-formed and contradict each other in every way.
func TestArbitrary(t *testing.T) {
	word := rapid.SampledFrom([]string{"", "n1", "n2", "n1", "n2", "n3", "godwit-none", "a,b"})
	rapid.Check(t, func(t *rapid.T) {
		env := Env{Now: epoch.Add(time.Duration(rapid.IntRange(-5, 200).Draw(t, "now")) * time.Second),
			Chassis: map[ident.ChassisName]bool{"n1": true, "n2": true, "n3": rapid.Bool().Draw(t, "n3")}}
		o := objects{Ports: map[string]*nbdb.LogicalSwitchPort{}}
		if rapid.IntRange(0, 9).Draw(t, "VMI") > 0 {
			o.VMI = exampleObjects().VMI
			o.VMI.Status.MigrationState = arbitraryState(t)
			phases := []kubevirtv1.VirtualMachineInstancePhase{"", kubevirtv1.Running, kubevirtv1.Running, kubevirtv1.Failed}
			o.VMI.Status.Phase = rapid.SampledFrom(phases).Draw(t, "VMI phase")
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "pods") {
			o.Pods = append(o.Pods, arbitraryPod(t, i, word.Draw(t, "node")))
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "VMIMs") {
			m := exampleObjects().VMIMs[1]
			m.Name, m.UID = fmt.Sprintf("m%d", i), types.UID(fmt.Sprintf("M%d", i))
			m.Status.Phase = rapid.SampledFrom([]kubevirtv1.VirtualMachineInstanceMigrationPhase{"", kubevirtv1.MigrationRunning, kubevirtv1.MigrationSucceeded,
				kubevirtv1.MigrationFailed}).Draw(t, "VMIM phase")
			m.Status.MigrationState = arbitraryState(t)
			o.VMIMs = append(o.VMIMs, m)
		}
		for _, network := range []string{"default", "blue"} {
			row := &nbdb.LogicalSwitchPort{Name: "vm/" + network, Options: map[string]string{}, ExternalIDs: map[string]string{}}
			requested := rapid.SampledFrom([]string{"", "n1", "n2", "n1,n2", "n2,n1", "n1,n2", "n2,n3", "godwit-none",
				",", "n1,n2,n3", "n1,n1"}).Draw(t, "requested")
			set(row.Options, ident.OptionRequestedChassis, requested)
			set(row.Options, ident.OptionActivationStrategy, rapid.SampledFrom([]string{"", "rarp", "garp"}).Draw(t, "strategy"))
			set(row.ExternalIDs, ident.KeyMigration, rapid.SampledFrom([]string{"", "M0", "M1", "M2"}).Draw(t, "stamp"))
			set(row.ExternalIDs, ident.KeyMigrationSource, word.Draw(t, "stamp source"))
			set(row.ExternalIDs, ident.KeyMigrationTarget, word.Draw(t, "stamp target"))
			o.Ports[network] = row
			b := &sbdb.PortBinding{LogicalPort: row.Name, Options: map[string]string{}, ExternalIDs: row.ExternalIDs}
			set(b.Options, ident.OptionRequestedChassis, requested)
			set(b.Options, ident.OptionActivationStrategy, row.Options[ident.OptionActivationStrategy])
			set(b.Options, ident.BindingActivated, rapid.SampledFrom([]string{"", "", "n1", "n2", "n2,n1"}).Draw(t, "activated"))
			if rapid.IntRange(0, 4).Draw(t, "binding") > 0 {
				o.Bindings = append(o.Bindings, b)
			}
		}
		if err := total(o, env); err != nil {
			t.Fatal(err)
		}
	})
}

func arbitraryPod(t *rapid.T, i int, node string) *corev1.Pod {
	name := fmt.Sprintf("p%d", i)
	created := epoch.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "created")) * time.Second)
	pod := newLauncher(name, "uid-"+name, rapid.SampledFrom([]string{"V1", "V1", "V1", "V2"}).Draw(t, "owner"), created)
	pod.Spec.NodeName = node
	pod.Status.Phase = rapid.SampledFrom([]corev1.PodPhase{"", corev1.PodPending, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded,
		corev1.PodUnknown}).Draw(t, "phase")
	set(pod.Labels, kubevirtv1.MigrationJobLabel, rapid.SampledFrom([]string{"", "M0", "M1", "M2", "M9"}).Draw(t, "job"))
	if rapid.IntRange(0, 3).Draw(t, "ready") == 0 {
		pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] = rapid.SampledFrom([]string{"", "yesterday", epoch.String()}).Draw(t, "ready at")
	}
	if rapid.Bool().Draw(t, "blue NIC") {
		setNetworks(pod, []string{"blue"})
	}
	return pod
}

func arbitraryState(t *rapid.T) *kubevirtv1.VirtualMachineInstanceMigrationState {
	if rapid.Bool().Draw(t, "no state") {
		return nil
	}
	s := &kubevirtv1.VirtualMachineInstanceMigrationState{
		MigrationUID: types.UID(rapid.SampledFrom([]string{"", "M0", "M1", "M2", "M9"}).Draw(t, "state of")),
		SourcePod:    rapid.SampledFrom([]string{"", "p0", "p1"}).Draw(t, "source pod"),
		TargetPod:    rapid.SampledFrom([]string{"", "p1", "p2"}).Draw(t, "target pod"),
		Completed:    rapid.Bool().Draw(t, "completed"), Failed: rapid.Bool().Draw(t, "failed"),
		Mode: rapid.SampledFrom([]kubevirtv1.MigrationMode{"", kubevirtv1.MigrationPreCopy, kubevirtv1.MigrationPostCopy}).Draw(t, "mode"),
	}
	if rapid.Bool().Draw(t, "domain ready") {
		s.TargetNodeDomainReadyTimestamp = &metav1.Time{Time: epoch}
	}
	return s
}

// total checks that objects have a decision, that it keeps the invariants of every write, that applying it leaves nothing to do, and that neither Observe
// nor Decide changed what they were given.
func total(o objects, env Env) error {
	before, beforeErr := json.Marshal(o) // what came from JSON need not go back, such as a time out of range
	d := Decide(o.observe(), env)
	if after, err := json.Marshal(o); (err == nil) != (beforeErr == nil) || string(after) != string(before) {
		return fmt.Errorf("the objects were changed:\n%s\n%s", before, after)
	}
	if d.Phase == "" || d.Reason == "" || d.Message == "" {
		return fmt.Errorf("a decision without phase, reason or message: %+v", d)
	}
	ovn := newFakeOVN()
	ovn.chassis = env.Chassis
	for network, row := range o.Ports {
		if row != nil {
			set2(&row.Options, &row.ExternalIDs)
			ovn.rows[network] = row
		}
	}
	for _, p := range d.Ports {
		for _, b := range o.Bindings {
			if b != nil && b.LogicalPort == string(p.Name) {
				ovn.sb[p.Network] = b
			}
		}
	}
	if err := ovn.apply(d); err != nil {
		return err
	}
	if again := Decide(o.observe(), env); changed(again) {
		return fmt.Errorf("deciding twice changes a port:\n%s%s", describe(d), describe(again))
	}
	return nil
}

// set2 makes maps that are nil.
func set2(maps ...*map[string]string) {
	for _, m := range maps {
		if *m == nil {
			*m = map[string]string{}
		}
	}
}
