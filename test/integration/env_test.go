package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/go-logr/logr"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
	"github.com/godwit-cni/godwit/test/lab/source"
	"github.com/godwit-cni/godwit/test/lab/suite"
)

// controllerUser is who the controller is in a cluster: it runs here with the permissions of yamls/rbac.yaml and under its admission policies.
const controllerUser = "system:serviceaccount:godwit-system:godwit-controller"

const (
	// patience bounds each wait, on a slow machine and beside other tests.
	patience = 5 * time.Minute
	// serverPatience bounds the start and the end of an API server, several of which may start at once.
	serverPatience = 10 * time.Minute
)

// TestMain gives the process one logger: the first test's would not outlive it.
func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	os.Exit(m.Run())
}

// env is an API server, OVN databases, and a controller that can be stopped and started.
type env struct {
	api     client.Client // an administrator
	rest    *rest.Config
	central *ovntest.OVNCentral
	nb      *ovn.NB  // for looking, and for playing the vandal
	journal *journal // what controllers write
	stop    func()
}

func newEnv(t *testing.T) *env {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	set, err := binaries.Ensure(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	server := &envtest.Environment{
		BinaryAssetsDirectory: set.Kubernetes(),
		CRDDirectoryPaths:     []string{filepath.Join(top, "yamls", "crds")},
		ErrorIfCRDPathMissing: true,
		CRDInstallOptions:     envtest.CRDInstallOptions{MaxTime: patience},

		ControlPlaneStartTimeout: serverPatience, ControlPlaneStopTimeout: serverPatience,
	}
	suite.Remove(t, func() {
		if err := server.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	cfg, err := server.Start()
	if err != nil {
		t.Fatalf("start an API server: %v", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), kubevirtv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = -1, 0
	cfg.WarningHandler = rest.NoWarnings{} // else they go to the process's logger
	api, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	e := &env{api: api, rest: cfg, central: ovntest.Central(t), journal: &journal{}}
	e.apply(t, filepath.Join(top, "yamls", "install.yaml"), "Namespace", "ServiceAccount")
	e.apply(t, filepath.Join(top, "yamls", "rbac.yaml"))
	e.nb, err = ovn.Connect(t.Context(), ovn.Config{Endpoints: []string{e.central.NB}, Registerer: prometheus.NewRegistry(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.nb.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; e.nb.Close() })
	return e
}

// apply creates the objects of a manifest, of the given kinds if any are given. The API server has to know each field.
func (e *env) apply(t *testing.T, file string, kinds ...string) {
	t.Helper()
	for _, u := range manifest(t, file) {
		if len(kinds) > 0 && !contains(kinds, u.GetKind()) {
			continue
		}
		if err := e.api.Create(t.Context(), &u, client.FieldValidation(metav1.FieldValidationStrict)); err != nil {
			t.Fatalf("%s: %s %s: %v", file, u.GetKind(), u.GetName(), err)
		}
	}
}

// manifest has its objects.
func manifest(t *testing.T, file string) (all []unstructured.Unstructured) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var u unstructured.Unstructured
		err := dec.Decode(&u)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, u)
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// start runs a controller until the test ends or stop is called.
func (e *env) start(t *testing.T, change ...func(*controller.Config)) {
	t.Helper()
	c := controller.Defaults()
	c.NBEndpoints, c.SBEndpoints = []string{e.central.NB}, []string{e.central.SB}
	c.DefaultCIDRs = []string{"10.244.0.0/16", "fd00:10:244::/64"}
	c.JoinCIDRs = []string{"100.64.0.0/16", "fd98::/64"}
	c.MetricsAddress, c.HealthAddress = "0", "0"
	c.LeaderElection = false
	for _, f := range change {
		f(&c)
	}
	c.Registerer = prometheus.NewRegistry()
	c.Logger = slog.New(&journalHandler{Handler: slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}), journal: e.journal})
	cfg := rest.CopyConfig(e.rest)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: controllerUser, Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- controller.Run(ctx, c, cfg) }()
	stopped := false
	e.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controller: %v", err)
		}
	}
	t.Cleanup(e.stop)
}

// eventually waits until check has nothing to say any more.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// defaultSubnet waits until the controller has made the default Subnet.
func (e *env) defaultSubnet(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		return e.api.Get(t.Context(), types.NamespacedName{Name: controller.DefaultSubnet}, &v1alpha1.Subnet{})
	})
}

// node registers a node whose agent has published an MTU.
func (e *env) node(t *testing.T, name string) {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{v1alpha1.MTUAnnotation: "1442"}}}
	if err := e.api.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

func (e *env) namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	if err := e.api.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}); err != nil {
		t.Fatal(err)
	}
}

// pod creates a pod; on no node when node is empty.
func (e *env) pod(t *testing.T, key types.NamespacedName, node string) *corev1.Pod {
	t.Helper()
	p := newPod(key, node)
	if err := e.api.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

func newPod(key types.NamespacedName, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}},
			AutomountServiceAccountToken: new(bool),
		},
	}
}

func (e *env) deletePod(t *testing.T, key types.NamespacedName) {
	t.Helper()
	zero := int64(0)
	err := e.api.Delete(t.Context(), newPod(key, ""), &client.DeleteOptions{GracePeriodSeconds: &zero})
	if err != nil {
		t.Fatal(err)
	}
}

// identity is the pod's, or an error while it has none.
func (e *env) identity(ctx context.Context, key types.NamespacedName) (v1alpha1.Identity, error) {
	var p corev1.Pod
	if err := e.api.Get(ctx, key, &p); err != nil {
		return v1alpha1.Identity{}, err
	}
	id, err := v1alpha1.ParseIdentity(p.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		return id, err
	}
	if id.PodUID != string(p.UID) {
		return id, fmt.Errorf("identity of pod %s is for UID %s, want %s", key, id.PodUID, p.UID)
	}
	return id, nil
}

// port is the pod's row, or an error while there is none.
func (e *env) port(ctx context.Context, key types.NamespacedName) (*nbdb.LogicalSwitchPort, error) {
	p, err := e.nb.Port(ctx, ident.PodPort(key.Namespace, key.Name, ident.DefaultNetwork))
	if err == nil && p == nil {
		err = fmt.Errorf("pod %s has no port", key)
	}
	return p, err
}

// served waits until the pod has an identity and a row that says the same.
func (e *env) served(t *testing.T, key types.NamespacedName) (v1alpha1.Identity, *nbdb.LogicalSwitchPort) {
	t.Helper()
	var id v1alpha1.Identity
	var lsp *nbdb.LogicalSwitchPort
	eventually(t, func() (err error) {
		if id, err = e.identity(t.Context(), key); err != nil {
			return err
		}
		if lsp, err = e.port(t.Context(), key); err != nil {
			return err
		}
		if got, want := lsp.ExternalIDs[ident.KeyUID], id.PodUID; got != want {
			return fmt.Errorf("port of pod %s is for UID %s, want %s", key, got, want)
		}
		return nil
	})
	return id, lsp
}
