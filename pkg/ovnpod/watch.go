package ovnpod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/raft"
)

const (
	// watchInterval is the pause between two looks.
	watchInterval = 2 * time.Second
	// silence is how long the leader has heard nothing of a member that is taken for gone, if there is another in its place.
	silence = 20 * time.Second
	// recordInterval is how often the leader looks whether the API still remembers its cluster.
	recordInterval = 10 * time.Second
	// convertTimeout bounds the conversion of a database to another schema.
	convertTimeout = 5 * time.Minute
)

// Watcher keeps one database's cluster to the members that there should be. It acts where the leader is; on the others it looks on.
type Watcher struct {
	Database Database
	API      API
	Log      *slog.Logger
	// Now is the clock.
	Now func() time.Time

	// leads since then; zero: another does.
	leads time.Time
	last  Status
	// tight: there was no room for a copy of the database, and its file has not been written anew since.
	tight bool
	// recorded is when the API last knew the cluster.
	recorded time.Time
	// replicas is how many members there should be by the last look; counted: the file says surplus, what is to be said of it.
	replicas int
	counted  bool
	surplus  string
}

// Watch runs watchers until ctx ends.
func Watch(ctx context.Context, watchers ...*Watcher) error {
	for _, w := range watchers {
		if err := w.forget(); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range watchers {
		g.Go(func() error { return w.run(ctx) })
	}
	return g.Wait()
}

func (w *Watcher) run(ctx context.Context) error {
	for told := ""; ; {
		err := w.look(ctx)
		if err != nil && err.Error() != told && ctx.Err() == nil {
			w.Log.Warn("the cluster could not be looked after", "db", w.Database.Name, "error", err)
		}
		told = ""
		if err != nil {
			told = err.Error()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

func (w *Watcher) look(ctx context.Context) error {
	s, err := w.Database.status(ctx)
	if err == nil && s.Failed {
		err = fmt.Errorf("the server of %s could not write to the disk, and has given up", w.Database.Name)
	}
	if err != nil {
		return errors.Join(err, w.revive(ctx, s, err))
	}
	if s.Leader != w.last.Leader || s.Member != w.last.Member || s.Led != w.last.Led || s.Term != w.last.Term {
		w.Log.Info("state of the cluster's member", "db", w.Database.Name, "member", s.Member, "leads", s.Leader, "led", s.Led, "term", s.Term, "servers", len(s.servers))
	}
	w.last = s
	whole := errors.Join(w.whole(ctx), w.count(ctx, s))
	if !s.Leader {
		w.leads = time.Time{}
		return whole
	}
	if w.leads.IsZero() {
		w.leads = w.Now()
	}
	return errors.Join(whole, w.record(ctx, s), w.dismiss(ctx, s), w.convert(ctx), w.listen(ctx))
}

// record tells the API of a cluster that it does not know. It may know another: two came to be at the same time, as where a copy of an earlier install lies on one node and the first pod starts on one without,
// or it was restored from an earlier day. The cluster to which most pods belong is the database's then, since there can be one such; a server of any other is ended, and joins that one when it starts again.
func (w *Watcher) record(ctx context.Context, s Status) error {
	if s.Cluster == "" || !w.recorded.IsZero() && w.Now().Sub(w.recorded) < recordInterval {
		return nil
	}
	err := w.API.Claim(ctx, w.Database.Kind, "", s.Cluster)
	if errors.Is(err, ErrOtherCluster) {
		return w.settle(ctx, s, err)
	}
	if err != nil {
		return err
	}
	w.recorded = w.Now()
	return nil
}

// settle is for a leader whose cluster is not the one that the API remembers.
func (w *Watcher) settle(ctx context.Context, s Status, why error) error {
	known, err := w.API.Record(ctx, w.Database.Kind)
	if err != nil {
		return err
	}
	replicas, err := w.API.Replicas(ctx)
	if err != nil {
		return err
	}
	if most(s, replicas) {
		w.Log.Warn("most members are in this cluster: it is the database's", "db", w.Database.Name, "cluster", s.Cluster, "was", known.Cluster)
		return w.API.Claim(ctx, w.Database.Kind, known.Cluster, s.Cluster)
	}
	return errors.Join(why, w.end(ctx, "it leads another cluster than the database's, and joins that when it starts again"))
}

// most says whether most of the pods are in the leader's cluster, and speak.
func most(s Status, replicas int) bool {
	live := 0
	for _, one := range s.servers {
		if one.Self || one.Silent >= 0 && one.Silent <= silence {
			live++
		}
	}
	return 2*live > replicas
}

// superfluous picks the member to remove: there are more than there should be, and this one has been silent for longest. A member that came with an empty disk, on
// this node or another, is the one too many; the one in whose place it came never speaks again.
func superfluous(s Status, replicas int, led time.Duration) (raft.Server, bool) {
	if len(s.servers) <= replicas {
		return raft.Server{}, false
	}
	var gone []raft.Server
	for _, one := range s.servers {
		if one.Silent < 0 && !one.Self {
			one.Silent = led // it may have had no reason to speak to a new leader yet
		}
		if !one.Self && one.Silent > silence {
			gone = append(gone, one)
		}
	}
	if len(gone) == 0 {
		return raft.Server{}, false
	}
	return slices.MaxFunc(gone, func(a, b raft.Server) int { return int(a.Silent - b.Silent) }), true
}

func (w *Watcher) dismiss(ctx context.Context, s Status) error {
	if len(s.servers) < 2 {
		return nil
	}
	replicas, err := w.API.Replicas(ctx)
	if err != nil {
		return err
	}
	one, ok := superfluous(s, replicas, w.Now().Sub(w.leads))
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	id := removedName(one.ID, one.Address)
	// The record first: a file of a member that was removed must never be taken for a member's, whoever dies between the two.
	if err := w.API.Remember(ctx, w.Database.Kind, func(r *Record) {
		if !slices.Contains(r.Removed, id) {
			r.Removed = append(r.Removed, id)
		}
	}); err != nil {
		return err
	}
	w.Log.Info("removing a member that is gone", "db", w.Database.Name, "server", id, "address", one.Address, "silent", one.Silent, "servers", len(s.servers), "replicas", replicas)
	var said string
	if err := ovs.Call(ctx, w.Database.Control, "cluster/kick", []string{w.Database.Name, one.ID}, &said); err != nil {
		return fmt.Errorf("remove member %s of %s: %w", one.ID, w.Database.Name, err)
	}
	return nil
}

// convert brings the database to this image's schema, if that is newer. An older one is the other members' matter: the image may be rolled back, and a database
// with a newer schema serves older daemons.
func (w *Watcher) convert(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, convertTimeout)
	defer cancel()
	text, err := os.ReadFile(w.Database.Schema)
	if err != nil {
		return fmt.Errorf("read this image's schema: %w", err)
	}
	var want, have struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(text, &want); err != nil {
		return fmt.Errorf("read this image's schema %s: %w", w.Database.Schema, err)
	}
	if err := ovs.Call(ctx, w.Database.Socket, "get_schema", []string{w.Database.Name}, &have); err != nil {
		return fmt.Errorf("ask for the schema of %s: %w", w.Database.Name, err)
	}
	if !newer(want.Version, have.Version) {
		return nil
	}
	w.Log.Info("converting the database", "db", w.Database.Name, "from", have.Version, "to", want.Version)
	var done struct{}
	if err := ovs.Call(ctx, w.Database.Socket, "convert", []any{w.Database.Name, json.RawMessage(text)}, &done); err != nil {
		return fmt.Errorf("convert %s from schema %s to %s: %w", w.Database.Name, have.Version, want.Version, err)
	}
	return nil
}

// newer compares versions of schemas, X.Y.Z: ovsdb(7).
func newer(a, b string) bool {
	var va, vb [3]int
	_, errA := fmt.Sscanf(a, "%d.%d.%d", &va[0], &va[1], &va[2])
	_, errB := fmt.Sscanf(b, "%d.%d.%d", &vb[0], &vb[1], &vb[2])
	return errA == nil && errB == nil && slices.Compare(va[:], vb[:]) > 0
}
