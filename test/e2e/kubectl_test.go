package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

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
	cmd := plugin.Command("test") //nolint:contextcheck // cobra passes it
	cmd.SetArgs(append([]string{"--kubeconfig", cluster.Kubeconfig(), "-n", namespace}, args...))
	cmd.SetOut(out)
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
	eventually(t, patience(settleTimeout), func(context.Context) error {
		return mentions(watched.String(), "Prepared", "Committed", "Succeeded", " ms")
	})
	cancel()
	if err := errors.Join(<-done, <-talking); err != nil {
		t.Error(err)
	}
	t.Logf("kubectl ovn migrations %s -w\n%s", s.VM.Name, watched.String())
	// What each says in the end: the record is complete, the Port settled.
	wanted := map[string][]string{
		"migration check": {"the VM runs on " + s.Target, "KubeVirt can migrate it live", "keeps its addresses and its connections", "it can move to ", s.Source, "its last migration was interrupted for "},
		"migration show":  {s.Source + " → " + s.Target + ", succeeded after", "the target is activated", "the VM announces itself", "the VM's first frame here", "interruption", " ms at most, by one clock"},
		"port":            {"Attached on " + s.Target, s.Guest.IPs[0].String(), s.Guest.IPs[1].String(), "may attach on " + s.Target, "last migration"},
	}
	for command, words := range wanted {
		var out *printed
		eventually(t, patience(settleTimeout), func(ctx context.Context) error {
			out = &printed{}
			if err := kubectlOVN(ctx, out, s.Namespace, append(strings.Fields(command), s.VM.Name)...); err != nil {
				return err
			}
			return mentions(out.String(), words...)
		})
		t.Logf("kubectl ovn %s %s\n%s", command, s.VM.Name, out.String())
	}
}
