package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

func TestEntryIsFilledOnce(t *testing.T) {
	t.Setenv(dirVariable, t.TempDir())
	var fills atomic.Int32
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			dir, err := Entry(t.Context(), "kind", "key", func(_ context.Context, dir string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o644)
			})
			if err != nil {
				return err
			}
			_, err = os.ReadFile(filepath.Join(dir, "file"))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if fills.Load() != 1 {
		t.Errorf("filled %d times, want once", fills.Load())
	}
}

func TestEntryFailedOrKilledLeavesNothing(t *testing.T) {
	base := t.TempDir()
	t.Setenv(dirVariable, base)
	broken := errors.New("no network")
	_, err := Entry(t.Context(), "kind", "key", func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("Entry = %v, want %v", err, broken)
	}
	// What a process that was killed while filling leaves behind.
	if err := os.MkdirAll(filepath.Join(base, "godwit", "kind", "key.part", "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := Entry(t.Context(), "kind", "key", func(_ context.Context, _ string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("entry holds %v (%v), want nothing of the unfinished one", left, err)
	}
}

func TestEntryStopsWaitingWithItsContext(t *testing.T) {
	base := t.TempDir()
	t.Setenv(dirVariable, base)
	if err := os.MkdirAll(filepath.Join(base, "godwit", "kind"), 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(t.Context(), filepath.Join(base, "godwit", "kind", "key.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Entry(ctx, "kind", "key", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Entry = %v, want deadline exceeded", err)
	}
}
