package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
)

// locked runs f while nobody else changes the lab, with its state as it is now.
func (l *Lab) locked(ctx context.Context, f func() error) error {
	unlock, err := lockLab(ctx, l.log, l.dir)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := readState(l.dir)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.state = s
	l.mu.Unlock()
	return f()
}

// Down removes the lab: its machines with all their processes, its control groups and its directory.
func (l *Lab) Down(ctx context.Context) error {
	err := l.locked(ctx, func() error { return l.remove(ctx) })
	if errors.Is(err, ErrNoLab) {
		return nil // somebody else has removed it since it was opened
	}
	return err
}

func (l *Lab) remove(ctx context.Context) error {
	l.mu.Lock()
	var names []string
	for name := range l.state.Machines {
		names = append(names, name)
	}
	l.mu.Unlock()
	slices.Sort(names)
	var g errgroup.Group
	for _, name := range names {
		g.Go(func() error { return l.clear(ctx, name) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("remove lab %s: %w", l.name(), err)
	}
	// The state file goes last: without it nothing of the lab would be found again.
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", l.name(), err)
	}
	for _, e := range entries {
		if e.Name() == stateFile {
			continue
		}
		if err := os.RemoveAll(l.path(e.Name())); err != nil {
			return fmt.Errorf("remove lab %s: %w", l.name(), err)
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove lab %s: %w", l.name(), err)
	}
	if err := os.Remove(l.dir + ".lock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lab %s: %w", l.name(), err)
	}
	_ = os.Remove(filepath.Dir(l.dir)) // refused while it holds other labs or is not ours
	return nil
}
