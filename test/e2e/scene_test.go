package e2e

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// settingTimeout is how long a VM and its peer may take to start.
const settingTimeout = 2 * time.Minute

// newScene makes a namespace for a VM, which setScene boots, of so much memory in MiB, the usual if zero. The end of the test removes both.
func newScene(t *testing.T, name string, memory int) *passage.Scene {
	t.Helper()
	s, err := passage.New(t.Context(), passage.Config{Lab: cluster.Lab, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Name: name, MemoryMiB: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return s
}

// setScene boots the scene's VM and its peer.
func setScene(t *testing.T, s *passage.Scene) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settingTimeout)
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
