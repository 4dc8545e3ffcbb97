package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// A cluster is recorded in the place of the one that is expected alone.
func TestClaim(t *testing.T) {
	api := API{Client: fake.NewClientset(), Namespace: "godwit-system"}
	for _, c := range []struct {
		expected, cluster, want string
		other                   bool
	}{
		{"", "c1", "c1", false},
		{"", "c1", "c1", false}, // again
		{"", "c2", "c1", true},  // late
		{"c1", "c2", "c2", false},
		{"c1", "c3", "c2", true},
	} {
		err := api.Claim(t.Context(), ProbeNB, c.expected, c.cluster)
		r, readErr := api.Record(t.Context(), ProbeNB)
		if readErr != nil || errors.Is(err, ErrOtherCluster) != c.other || err != nil && !c.other || r.Cluster != c.want {
			t.Errorf("%s in the place of %q: %v, and the record is %q (%v), want %q", c.cluster, c.expected, err, r.Cluster, readErr, c.want)
		}
	}
}

func TestMost(t *testing.T) {
	s := parseStatus(leaderStatus) // itself, one that spoke, one that never did, one that is silent
	for replicas, want := range map[int]bool{1: true, 3: true, 4: false, 5: false} {
		if got := most(s, replicas); got != want {
			t.Errorf("of %d pods: %t", replicas, got)
		}
	}
	s.servers = s.servers[:1]
	if most(s, 3) || !most(s, 1) {
		t.Error("one member alone is most of one, and not of three")
	}
}

// TestTwoClustersBecomeOne: a pod finds a copy of an earlier install, and the first one nothing; both look before the other has recorded its cluster. The one that is late gives in.
func TestTwoClustersBecomeOne(t *testing.T) {
	w := newWorld(t, 3)
	dir := t.TempDir()
	earlier := w.start(0, 1, dir)
	w.settled(earlier, 1)
	earlier.end()
	if err := w.api.Client.CoreV1().ConfigMaps(w.api.Namespace).Delete(t.Context(), RecordName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.unwatched = true
	late := w.start(1, 1, dir) // with its file as it is: no cluster is known
	w.unwatched = false
	first := w.start(0, 2, t.TempDir())
	w.settled(first, 1)
	w.settled(late, 1) // both have a leader
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, &Watcher{Database: late.database, API: w.api, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: time.Now})
	}()
	w.until(func() error {
		if _, err := late.database.status(t.Context()); err == nil {
			return errors.New("the server of the other cluster still runs")
		}
		return nil
	})
	cancel()
	<-done
	late.end()
	again := w.start(1, 1, dir)
	w.settled(again, 2)
	w.recorded(first)
}

// TestRecordIsCorrected: the API remembers another cluster than the one that most members are in, as after it was restored.
func TestRecordIsCorrected(t *testing.T) {
	w := newWorld(t, 1)
	r := w.start(0, 1, t.TempDir())
	w.settled(r, 1)
	if err := w.api.Remember(t.Context(), ProbeNB, func(r *Record) { r.Cluster = "cd66955e-3753-4b01-8c70-ec84edfe55c8" }); err != nil {
		t.Fatal(err)
	}
	w.recorded(r)
	w.settled(r, 1)
}

// recorded returns when the API remembers the cluster that a member is in.
func (w *world) recorded(r *run) {
	w.t.Helper()
	w.until(func() error {
		known, err := w.api.Record(w.t.Context(), ProbeNB)
		s, statusErr := r.database.status(w.t.Context())
		if err := errors.Join(err, statusErr); err != nil {
			return err
		}
		if known.Cluster != s.Cluster {
			return fmt.Errorf("the API remembers cluster %s, and it is %s", known.Cluster, s.Cluster)
		}
		return nil
	})
}
