package kubevirt

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/output"
	"github.com/godwit-cni/godwit/test/lab/suite"
)

// keep is where recordings of the tests are left, to be replayed by pkg/migration; by default they are thrown away.
var keep = flag.String("recordings", "", "directory to leave the recordings in")

// env is an API server with the stand-in, launchers without QEMU, and somebody who plays the kubelets.
type env struct {
	api       client.Client
	rest      *rest.Config
	launchers *fakeLaunchers
	namespace string
	recording *output.Buffer
	log       *slog.Logger
	// stop ends the stand-in.
	stop func()
}

// server starts an API server with the stand-in's manifests.
func server(t *testing.T) *rest.Config {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	set, err := binaries.Ensure(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	s := &envtest.Environment{BinaryAssetsDirectory: set.Kubernetes()}
	suite.Remove(t, func() { // nobody is left who would wait for it
		if err := s.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	cfg, err := s.Start()
	if err != nil {
		t.Fatalf("start an API server: %v", err)
	}
	cfg.QPS, cfg.Burst = -1, 0
	api, err := client.New(cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range Manifests() {
		dec := yaml.NewYAMLOrJSONDecoder(strings.NewReader(m), 4096)
		for {
			var u unstructured.Unstructured
			err := dec.Decode(&u)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := api.Create(t.Context(), &u); err != nil {
				t.Fatalf("%s %s: %v", u.GetKind(), u.GetName(), err)
			}
		}
	}
	return cfg
}

// newEnv starts a stand-in and records what it does.
func newEnv(t *testing.T, cfg *rest.Config) *env {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	e := &env{api: api, rest: cfg, launchers: newFakeLaunchers(), namespace: metav1.NamespaceDefault, recording: &output.Buffer{}}
	e.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	e.background(t, (&fakeKubelet{api: api, launchers: e.launchers, nodes: []string{"node1", "node2", "node3"}}).run)
	r, err := NewRecording(cfg, e.recording)
	if err != nil {
		t.Fatal(err)
	}
	e.background(t, r.Run)
	e.stop = e.standIn(t)
	return e
}

// standIn runs a stand-in until the test ends or stop is called, as the user that a lab has for it: what it may do is tested as well.
func (e *env) standIn(t *testing.T) (stop func()) {
	t.Helper()
	user := rest.CopyConfig(e.rest)
	user.Impersonate.UserName = User
	return e.background(t, func(ctx context.Context) error {
		return Run(ctx, Config{API: user, Launchers: e.launchers, Log: e.log})
	})
}

// in is the same with another namespace, named for the test; its recording is left where -recordings says.
func (e *env) in(t *testing.T) *env {
	t.Helper()
	_, name, _ := strings.Cut(t.Name(), "/")
	o := *e
	o.namespace = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	if err := e.api.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.namespace}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if *keep == "" {
			return
		}
		var b bytes.Buffer
		for line := range bytes.Lines([]byte(e.recording.String())) {
			if bytes.Contains(line, []byte(`"namespace":"`+o.namespace+`"`)) {
				b.Write(line)
			}
		}
		if err := os.WriteFile(filepath.Join(*keep, o.namespace+".jsonl"), b.Bytes(), 0o600); err != nil {
			t.Error(err)
		}
	})
	return &o
}

func (e *env) background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("in the background: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// vmi creates a bare VMI on node1 and returns it when it is ready.
func (e *env) vmi(t *testing.T, name string, annotations map[string]string) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.namespace, Annotations: annotations}}
	return e.create(t, vmi)
}

// create creates a VMI that may migrate and returns it when it is ready.
func (e *env) create(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi.Annotations = with(vmi.Annotations, kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation, "")
	// A kind that has just been defined is not served at once.
	eventually(t, "VMI "+vmi.Name+" created", func() bool { return e.api.Create(t.Context(), vmi) == nil })
	return e.awaitVMI(t, vmi.Name, "ready", func(v *kubevirtv1.VirtualMachineInstance) bool {
		return conditionTrue(v, kubevirtv1.VirtualMachineInstanceReady)
	})
}

func (e *env) awaitVMI(t *testing.T, name, what string, ok func(*kubevirtv1.VirtualMachineInstance) bool) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi := &kubevirtv1.VirtualMachineInstance{}
	eventually(t, "VMI "+name+" "+what, func() bool {
		return e.api.Get(t.Context(), types.NamespacedName{Namespace: e.namespace, Name: name}, vmi) == nil && ok(vmi)
	})
	return vmi
}

// migrate creates a migration, as virtctl does.
func (e *env) migrate(t *testing.T, vmi, name string, annotations map[string]string) *kubevirtv1.VirtualMachineInstanceMigration {
	t.Helper()
	m := &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.namespace, Annotations: annotations},
		Spec:       kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: vmi},
	}
	if err := e.api.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func (e *env) awaitPhase(t *testing.T, name string, phase kubevirtv1.VirtualMachineInstanceMigrationPhase) *kubevirtv1.VirtualMachineInstanceMigration {
	t.Helper()
	m := &kubevirtv1.VirtualMachineInstanceMigration{}
	eventually(t, "VMIM "+name+" "+string(phase), func() bool {
		return e.api.Get(t.Context(), types.NamespacedName{Namespace: e.namespace, Name: name}, m) == nil && m.Status.Phase == phase
	})
	return m
}

// settled waits until the VM's only live launcher is on a node, and nothing of a migration is left in the VMI's labels.
func (e *env) settled(t *testing.T, name, node string) {
	t.Helper()
	e.awaitVMI(t, name, "settled on "+node, func(v *kubevirtv1.VirtualMachineInstance) bool {
		_, left := v.Labels[kubevirtv1.MigrationTargetNodeNameLabel]
		return v.Status.NodeName == node && !left && len(e.live(t, v)) == 1 && e.live(t, v)[0].Spec.NodeName == node
	})
}

func (e *env) live(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	if err := e.api.List(t.Context(), &pods, client.InNamespace(e.namespace), client.MatchingLabels{kubevirtv1.CreatedByLabel: string(vmi.UID)}); err != nil {
		t.Fatal(err)
	}
	var live []corev1.Pod
	for i := range pods.Items {
		if !down(&pods.Items[i]) {
			live = append(live, pods.Items[i])
		}
	}
	return live
}

// patience is for a machine with much else to do: 20 s were too short at a load of 20.
const patience = 5 * time.Minute

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: not %s", patience, what)
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, t.Context().Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
