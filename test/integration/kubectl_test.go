package integration

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/kubectl"
)

// plugin runs `kubectl ovn` as an administrator.
type plugin struct {
	kubeconfig string
	out, err   lines
}

// lines is what a command has printed up to now.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (e *env) plugin(t *testing.T) *plugin {
	t.Helper()
	config := api.Config{
		Clusters:       map[string]*api.Cluster{"c": {Server: e.rest.Host, CertificateAuthorityData: e.rest.CAData}},
		AuthInfos:      map[string]*api.AuthInfo{"u": {ClientCertificateData: e.rest.CertData, ClientKeyData: e.rest.KeyData}},
		Contexts:       map[string]*api.Context{"x": {Cluster: "c", AuthInfo: "u", Namespace: "shop"}},
		CurrentContext: "x",
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(config, file); err != nil {
		t.Fatal(err)
	}
	return &plugin{kubeconfig: file}
}

func (p *plugin) run(ctx context.Context, args ...string) error {
	p.out.b.Reset()
	p.err.b.Reset()
	cmd := kubectl.Command("test") //nolint:contextcheck // cobra passes it
	cmd.SetArgs(append([]string{"--kubeconfig", p.kubeconfig}, args...))
	cmd.SetOut(&p.out)
	cmd.SetErr(&p.err)
	return cmd.ExecuteContext(ctx)
}

// mustRun runs it, and checks that everything wanted is in what it prints.
func (p *plugin) mustRun(t *testing.T, args []string, want ...string) string {
	t.Helper()
	if err := p.run(t.Context(), args...); err != nil {
		t.Fatalf("kubectl ovn %s: %v", strings.Join(args, " "), err)
	}
	got := p.out.String()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("kubectl ovn %s printed no %q:\n%s", strings.Join(args, " "), w, got)
		}
	}
	return got
}

// mustFail runs it, and checks that its error says what is wanted.
func (p *plugin) mustFail(t *testing.T, args []string, want string) {
	t.Helper()
	if err := p.run(t.Context(), args...); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("kubectl ovn %s: %v, want an error that says %q", strings.Join(args, " "), err, want)
	}
}

// moved puts a migration on record that began some minutes ago.
func (e *env) moved(t *testing.T, name, vm string, minutesAgo int) *v1alpha1.PortMigration {
	t.Helper()
	end := func(node string) v1alpha1.MigrationEnd {
		return v1alpha1.MigrationEnd{Node: node, Pod: v1alpha1.ObjectName{Name: "virt-launcher-" + vm + "-" + node, UID: types.UID(node)}}
	}
	pm := &v1alpha1.PortMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: v1alpha1.PortMigrationSpec{
			VMI: v1alpha1.ObjectName{Name: vm, UID: types.UID(vm)}, Migration: v1alpha1.ObjectName{Name: "vmim-" + name, UID: types.UID(name)}, Source: end("node1"), Target: end("node2"),
			Ports: []v1alpha1.MigratedPort{{Network: "default", Name: "vm/shop/" + vm + "/default", MAC: "02:00:00:00:00:01"}},
		},
	}
	if err := e.api.Create(t.Context(), pm); err != nil {
		t.Fatal(err)
	}
	at := metav1.NewMicroTime(time.Now().Add(-time.Duration(minutesAgo) * time.Minute))
	pm.Status = v1alpha1.PortMigrationStatus{Phase: "Prepared", Result: v1alpha1.MigrationRunning, Stages: []v1alpha1.Stage{{Name: v1alpha1.StageScheduled, Time: at}}}
	if err := e.api.Status().Update(t.Context(), pm); err != nil {
		t.Fatal(err)
	}
	return pm
}

func TestKubectl(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	p := e.plugin(t)
	p.mustRun(t, []string{"migrations"})
	if said := p.err.String(); !strings.Contains(said, "No migrations on record in namespace shop.") {
		t.Errorf("where there is none it says %q", said)
	}
	e.namespace(t, "shop", nil)
	e.moved(t, "second", "web1", 1)
	e.moved(t, "first", "web1", 9)
	e.moved(t, "other", "web2", 5)
	t.Run("migrations", func(t *testing.T) { e.listed(t, p) })
	t.Run("show", func(t *testing.T) {
		p.mustRun(t, []string{"migration", "show", "web1"}, "VM shop/web1: node1 → node2, running since", "vmim-second")
		p.mustRun(t, []string{"migration", "show", "first"}, "vmim-first", "vm/shop/web1/default")
		p.mustRun(t, []string{"migration", "show", "first", "-o", "yaml"}, "kind: PortMigration\n", "name: first\n")
		p.mustFail(t, []string{"migration", "show", "web9"}, "neither a PortMigration web9 nor one of a VM of that name in namespace shop")
	})
	t.Run("watch", func(t *testing.T) { e.followed(t, p) })
	t.Run("port", func(t *testing.T) { e.portsTold(t, p) })
	t.Run("wrong usage", func(t *testing.T) {
		p.mustFail(t, []string{"migrations", "-o", "xml"}, "want wide, json or yaml")
		p.mustFail(t, []string{"migrations", "-w", "-o", "json"}, "do not go together")
		p.mustFail(t, []string{"--context", "nowhere", "migrations"}, "nowhere")
	})
}

func (e *env) listed(t *testing.T, p *plugin) {
	t.Helper()
	got := p.mustRun(t, []string{"migrations", "web1"}, "VM     FROM    TO      PHASE      RESULT    INTERRUPTION")
	if n := strings.Count(got, "\n"); n != 3 || strings.Contains(got, "web2") {
		t.Errorf("want a header and the two of web1:\n%s", got)
	}
	wide := p.mustRun(t, []string{"migrations", "-A", "-o", "wide"}, "NAMESPACE", "REASON", "MIGRATION", "shop")
	first, other, second := strings.Index(wide, "vmim-first"), strings.Index(wide, "vmim-other"), strings.Index(wide, "vmim-second")
	if first < 0 || first > other || other > second {
		t.Errorf("want the oldest first:\n%s", wide)
	}
	var list v1alpha1.PortMigrationList
	if err := yaml.Unmarshal([]byte(p.mustRun(t, []string{"migrations", "-o", "yaml"}, "kind: PortMigrationList")), &list); err != nil || len(list.Items) != 3 || list.Items[0].Kind != "PortMigration" {
		t.Errorf("as YAML: %v, %d items, want 3 of kind PortMigration", err, len(list.Items))
	}
}

// followed watches one VM, whose migration ends, while another's changes.
func (e *env) followed(t *testing.T, p *plugin) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.run(ctx, "migrations", "web1", "-w") }()
	eventually(t, func() error {
		if strings.Count(p.out.String(), "\n") < 3 {
			return errors.New("the watch has not printed what there was: " + p.out.String())
		}
		return nil
	})
	e.finish(t, "other")
	e.finish(t, "second")
	eventually(t, func() error {
		if !strings.Contains(p.out.String(), "Succeeded") {
			return errors.New("the watch has not printed the end: " + p.out.String())
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the watch was interrupted, and returned %v", err)
	}
	if got := p.out.String(); strings.Contains(got, "web2") || strings.Count(got, "Succeeded") != 1 || !strings.Contains(got, "12.5 ms ±0.3") {
		t.Errorf("want one line more, of web1's migration that has ended:\n%s", got)
	}
}

// finish ends a migration.
func (e *env) finish(t *testing.T, name string) {
	t.Helper()
	var pm v1alpha1.PortMigration
	if err := e.api.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: name}, &pm); err != nil {
		t.Fatal(err)
	}
	pm.Status.Phase, pm.Status.Result = "Committed", v1alpha1.MigrationSucceeded
	pm.Status.Interruption = &v1alpha1.Interruption{Milliseconds: "12.5", UncertaintyMilliseconds: "0.3"}
	pm.Status.Stages = append(pm.Status.Stages, v1alpha1.Stage{Name: v1alpha1.StageCompleted, Time: metav1.NowMicro()})
	if err := e.api.Status().Update(t.Context(), &pm); err != nil {
		t.Fatal(err)
	}
}

// portsTold asks for a VM that a controller has given its addresses, for one that it refuses, for a pod, and for nobody.
func (e *env) portsTold(t *testing.T, p *plugin) {
	t.Helper()
	e.start(t)
	defer e.stop()
	e.defaultSubnet(t)
	e.node(t, "node1")
	for name, ips := range map[string][]string{"web1": {"10.244.7.7"}, "web3": {"10.9.9.9"}} {
		port := &v1alpha1.Port{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec:       v1alpha1.PortSpec{Target: v1alpha1.PortTarget{Kind: v1alpha1.KindVirtualMachine, Name: name}, IPs: ips},
		}
		if err := e.api.Create(t.Context(), port); err != nil {
			t.Fatal(err)
		}
	}
	pod := types.NamespacedName{Namespace: "shop", Name: "plain"}
	e.pod(t, pod, "node1")
	eventually(t, func() error {
		_, err := e.identity(t.Context(), pod)
		return err
	})
	eventually(t, func() error {
		for vm, word := range map[string]string{"web1": "Reserved", "web3": "AddressOutOfRange"} {
			if err := p.run(t.Context(), "port", vm); err != nil {
				return err
			}
			if !strings.Contains(p.out.String(), word) {
				return errors.New(word + " is not told of " + vm + ": " + p.out.String())
			}
		}
		return nil
	})
	p.mustRun(t, []string{"port", "web1"}, "vm/shop/web1/default", "10.244.7.7", "last migration", "second, node1 → node2, succeeded")
	p.mustRun(t, []string{"port", "plain"}, "pod/shop/plain/default", "MTU", "1442", "node1")
	p.mustFail(t, []string{"port", "nobody"}, "neither a Port of a VM nobody nor a pod of that name")
}
