package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	plugin "github.com/godwit-cni/godwit/pkg/kubectl"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// printed is what a command has printed up to now.
type printed struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.String()
}

// kubectlOVN runs `kubectl ovn` in a namespace, and returns what it prints.
func kubectlOVN(ctx context.Context, out *printed, namespace string, args ...string) error {
	return kubectlOVNTo(ctx, out, &printed{}, append([]string{"-n", namespace}, args...)...)
}

// kubectlOVNTo is that with what it says besides.
func kubectlOVNTo(ctx context.Context, out, messages *printed, args ...string) error {
	cmd := plugin.Command("test") //nolint:contextcheck // cobra passes it
	cmd.SetArgs(append([]string{"--kubeconfig", cluster.Kubeconfig()}, args...))
	cmd.SetOut(out)
	cmd.SetErr(messages)
	return cmd.ExecuteContext(ctx)
}

// mentions says which of the words a text lacks.
func mentions(text string, words ...string) error {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return fmt.Errorf("want %q in:\n%s", w, text)
		}
	}
	return nil
}

// talk has the VM echo a line each 20 ms until ctx ends: of a VM that says nothing nobody can tell for how long it was not heard.
func talk(ctx context.Context, s *passage.Scene) error {
	path, err := cluster.Namespace("node3")
	if err != nil {
		return err
	}
	conn, err := traffic.Place{Namespace: path}.Dial(ctx, "tcp", netip.AddrPortFrom(s.Guest.IPs[0], permittedEcho).String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for ctx.Err() == nil {
		if err := echoed(conn, patience(settleTimeout)); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// An operator watches a migration, and then asks what has happened to the VM.
func TestKubectlMigrations(t *testing.T) {
	s := newScene(t, "kubectl", 0)
	setScene(t, s)
	var watched printed
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- kubectlOVN(ctx, &watched, s.Namespace, "migrations", s.VM.Name, "-w") }()
	talking := make(chan error, 1)
	go func() { talking <- talk(ctx, s) }()
	shuttle(t, s, 0)
	eventually(t, settleTimeout, func(context.Context) error {
		return mentions(watched.String(), "Prepared", "Committed", "Succeeded", " ms")
	})
	cancel()
	if err := errors.Join(<-done, <-talking); err != nil {
		t.Error(err)
	}
	t.Logf("kubectl ovn migrations %s -w\n%s", s.VM.Name, watched.String())
	// What each says in the end: the record is complete, the Port settled.
	wanted := map[string][]string{
		"migration check": {"the VM runs on " + s.Target, "KubeVirt can migrate it live", "keeps its addresses and its connections", "it can move to ", s.Source, " through the tunnels, and come back", "OVN has what a migration needs: ovn-controller ", "no NetworkPolicy isolates it", "its last migration was interrupted for "},
		"migration show":  {s.Source + " → " + s.Target + ", succeeded after", "the target is activated", "the VM announces itself", "the VM's first frame here", "interruption", " ms at most, by one clock"},
		"port":            {"Attached on " + s.Target, s.Guest.IPs[0].String(), s.Guest.IPs[1].String(), "may attach on " + s.Target, "last migration"},
	}
	for command, words := range wanted {
		var out *printed
		eventually(t, settleTimeout, func(ctx context.Context) error {
			out = &printed{}
			if err := kubectlOVN(ctx, out, s.Namespace, append(strings.Fields(command), s.VM.Name)...); err != nil {
				return err
			}
			return mentions(out.String(), words...)
		})
		t.Logf("kubectl ovn %s %s\n%s", command, s.VM.Name, out.String())
	}
	for what, trouble := range troubles(s) {
		t.Run(what, func(t *testing.T) { trouble.found(t, s) })
	}
	t.Run("isolated", func(t *testing.T) { isolationIsTold(t, s) })
}

// trouble is one of a node to which the VM could move: how it is brought about and mended on a machine, and what is said of it.
type trouble struct {
	machine      string
	damage, mend []string
	says         string
}

// troubles are those of the third node, once the VM is on its target.
func troubles(s *passage.Scene) map[string]trouble {
	const third = "node3"
	link := []string{"ip", "link", "set", "dev", "tun-" + third}
	set := func(args ...string) []string { return append(slices.Clone(link), args...) }
	signal := func(name string) []string { return []string{"sh", "-c", `kill -"$0" $(pidof ovn-controller)`, name} }
	return map[string]trouble{
		"it carries less": {"hub", set("mtu", "1400"), set("mtu", "1500"), "warn  the tunnel between " + s.Target + " and " + third + " carries packets of 1280 bytes, and not those of "},
		"it is cut":       {"hub", set("down"), set("up"), "warn  nothing comes back from " + third + " of what " + s.Target + " sends through the tunnel"},
		"OVN hangs there": {third, signal("STOP"), signal("CONT"), "warn  ovn-controller on " + third + " could not be asked for its release: version at /run/ovn/ovn-controller."},
	}
}

// found: `migration check` finds it, names it, and still says of the others what is right.
func (f trouble) found(t *testing.T, s *passage.Scene) {
	run := func(ctx context.Context, args []string) {
		if out, err := cluster.Exec(ctx, f.machine, args...); err != nil {
			t.Errorf("%v: %s %v", args, out, err)
		}
	}
	t.Cleanup(func() { run(context.WithoutCancel(t.Context()), f.mend) })
	run(t.Context(), f.damage)
	var out *printed
	eventually(t, settleTimeout, func(ctx context.Context) error {
		out = &printed{}
		if err := kubectlOVN(ctx, out, s.Namespace, "migration", "check", s.VM.Name); err == nil || !strings.Contains(err.Error(), "somebody would notice") {
			return fmt.Errorf("%w:\n%s", err, out.String())
		}
		return mentions(out.String(), f.says, "bytes reach "+s.Source+" (")
	})
	t.Logf("kubectl ovn migration check %s\n%s", s.VM.Name, out.String())
}

// isolationIsTold: `migration check` names the policy that isolates the VM, and what goes on all the same.
func isolationIsTold(t *testing.T, s *passage.Scene) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "nobody-comes-in"}, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}
	if err := cluster.api.Create(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.api.Delete(context.WithoutCancel(t.Context()), np) })
	var out *printed
	eventually(t, settleTimeout, func(ctx context.Context) error {
		out = &printed{}
		if err := kubectlOVN(ctx, out, s.Namespace, "migration", "check", s.VM.Name, "-o", "json"); err != nil {
			return fmt.Errorf("%w:\n%s", err, out.String())
		}
		return mentions(out.String(), `"check": "policies",
      "grade": "ok",
      "finding": "NetworkPolicy nobody-comes-in isolates it in ingress: TCP connections go on, if anything is sent on them within `)
	})
	t.Logf("kubectl ovn migration check %s -o json\n%s", s.VM.Name, out.String())
}
