package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/raft"
)

// tally is the file in which the container members says whether a database's cluster has more members than it should: empty if it has not. Its readiness probe is another process.
func (d Database) tally() string {
	return filepath.Join(filepath.Dir(d.Control), "ovn"+d.Kind+"_db.surplus")
}

// count says whether there are more members than there should be. Each takes its part in every majority, also one that is gone and has not been removed yet: whoever takes the next pod then, as a rolling update and a drain do when this
// one is ready, may take the majority. What was said before stays while the API server does not answer.
func (w *Watcher) count(ctx context.Context, s Status) error {
	if !s.Member || !slices.ContainsFunc(s.servers, func(one raft.Server) bool { return one.Self }) {
		return nil // it does not know its cluster yet
	}
	if n := len(s.servers); n > 1 && n != w.replicas { // one alone needs no API server
		replicas, err := w.API.Replicas(ctx)
		if err != nil {
			return err
		}
		w.replicas = replicas
	}
	said := ""
	if len(s.servers) > max(1, w.replicas) {
		said = fmt.Sprintf("the cluster of %s has %d members, and %d pods: one that is gone is removed when it has been silent for %s", w.Database.Name, len(s.servers), w.replicas, silence)
	}
	if w.counted && said == w.surplus {
		return nil
	}
	if err := os.WriteFile(w.Database.tally(), []byte(said), 0o600); err != nil {
		return fmt.Errorf("say how many members %s has: %w", w.Database.Name, err)
	}
	if said != w.surplus {
		w.Log.Info("members of the cluster", "db", w.Database.Name, "servers", len(s.servers), "replicas", w.replicas)
	}
	w.surplus, w.counted = said, true
	return nil
}

// forget takes away what was said by an earlier pod of this node, which may have been another cluster's.
func (w *Watcher) forget() error { return remove(w.Database.tally()) }

// fitting is an error where the cluster has more members than it should, or nobody has counted them yet.
func (d Database) fitting() error {
	said, err := os.ReadFile(d.tally())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("nobody has counted the members of %s yet: has its server joined its cluster, and does the API server answer?", d.Name)
	case err != nil:
		return fmt.Errorf("read how many members %s has: %w", d.Name, err)
	case len(said) > 0:
		return errors.New(strings.TrimSpace(string(said)))
	}
	return nil
}
