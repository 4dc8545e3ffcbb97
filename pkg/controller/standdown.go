package controller

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// standDownAfter is for how long a leader must have been without one of OVN's databases: longer than these need to choose another leader, and than the kubelet needs to find that
	// this replica is not ready.
	standDownAfter = 20 * time.Second
	standDownLook  = time.Second
	// standDownTimeout bounds the question who else is ready.
	standDownTimeout = 5 * time.Second
)

// standDown ends a leader that does not reach both of OVN's databases while another replica does, as when its node is cut off from the others. Where nobody reaches them it goes on: whoever is
// started again and again is there later when they are back.
//
// Inputs: whether the databases can be reached; the controllers' pods. Outputs: none; the process ends, and gives its lease back.
type standDown struct {
	api       client.Reader
	namespace string
	connected func() bool
	now       func() time.Time
	log       *slog.Logger
	// since is when the databases were first found out of reach; zero while they are not.
	since time.Time
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (s *standDown) NeedLeaderElection() bool { return true }

// Start implements manager.Runnable.
func (s *standDown) Start(ctx context.Context) error {
	tick := time.NewTicker(standDownLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.look(ctx); err != nil {
			return err
		}
	}
}

// look returns an error when another should lead.
func (s *standDown) look(ctx context.Context) error {
	now := s.now()
	if s.connected() {
		s.since = time.Time{}
		return nil
	}
	if s.since.IsZero() {
		s.since = now
	}
	if now.Sub(s.since) < standDownAfter {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, standDownTimeout)
	defer cancel()
	var pods corev1.PodList
	err := s.api.List(ctx, &pods, client.InNamespace(s.namespace), client.MatchingLabels{"app.kubernetes.io/name": "godwit", "app.kubernetes.io/component": "controller"})
	if err != nil {
		s.log.Warn("OVN's databases cannot be reached, and it is not known whether another replica reaches them", "error", err)
		return nil
	}
	for i := range pods.Items {
		if p := &pods.Items[i]; p.DeletionTimestamp == nil && podReady(p) {
			return fmt.Errorf("OVN's databases have not been reached from here for %s, and pod %s on %s is ready: it is to lead; can this node reach --nb-remote and --sb-remote?",
				now.Sub(s.since).Round(time.Second), p.Name, p.Spec.NodeName)
		}
	}
	return nil
}

// podReady says whether a pod's readiness probe has succeeded. This replica's own fails without the databases.
func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
