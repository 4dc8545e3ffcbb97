package e2e

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// settingTimeout is how long a VM and its peer may take to start.
const settingTimeout = 2 * time.Minute

// lastWordsTimeout bounds how long a guest's console is listened to.
const lastWordsTimeout = 2 * time.Second

// newScene makes a namespace for a VM, which setScene boots, of so much memory in MiB, the usual if zero. The end of the test removes both.
func newScene(t *testing.T, name string, memory int) *passage.Scene {
	t.Helper()
	s, err := passage.New(t.Context(), passage.Config{Lab: cluster.Lab, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Name: name, MemoryMiB: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		lastWords(t, s.VM)
		if err := s.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return s
}

// lastWords logs what a VM's guest has printed last, if the test has failed: why a program there has ended, say.
func lastWords(t *testing.T, vm *lab.VM) {
	t.Helper()
	if !t.Failed() || vm == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), lastWordsTimeout)
	defer cancel()
	console, err := vm.Console(ctx)
	if err != nil {
		t.Logf("the guest of VM %s says nothing: %v", vm, err)
		return
	}
	defer context.AfterFunc(ctx, func() { _ = console.Close() })()
	said, _ := io.ReadAll(console) // which ends when it is closed
	t.Logf("the guest of VM %s said last:\n%s", vm, said)
}

// setScene boots the scene's VM and its peer.
func setScene(t *testing.T, s *passage.Scene) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(settingTimeout))
	defer cancel()
	if err := s.Set(ctx); err != nil {
		t.Fatal(err)
	}
}

// shuttle moves the scene's VM, the first time from its source to its target, the second time back, and returns where it is, and QEMU's stop.
func shuttle(t *testing.T, s *passage.Scene, i int) (string, lab.Stop) {
	t.Helper()
	to := s.Target
	if i%2 == 1 {
		to = s.Source
	}
	g, err := s.VM.Migrate(t.Context(), lab.MigrateOptions{To: to})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop, err := g.QEMU(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("moved to %s; QEMU had stopped it for %s", to, stop.Duration())
	return to, stop
}
