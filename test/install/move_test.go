package install

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// moves migrates a VM there while both databases lose their leaders, and back while everything of Godwit's but the databases and Open vSwitch is updated. It keeps its addresses, its port and
// its connections.
func moves(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	s, err := passage.New(t.Context(), passage.Config{Lab: l, Log: fixture.Logger(t), Name: "install-moves"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience) // t.Context has ended by now
		defer cancel()
		if err := s.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Set(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), func(context.Context) error { return thereAndBack(t, l, client, s) }); err != nil { //nolint:contextcheck // it has the test's
		t.Error(err)
	}
}

const (
	// heldFor is for how long a connection may make no progress before it counts as broken: while databases have no leader TCP sends again later and later.
	heldFor = 5 * time.Minute
	// underWay is for how long at most one makes none that goes on.
	underWay = 3 * time.Second
)

func thereAndBack(t *testing.T, l *lab.Lab, client kubernetes.Interface, s *passage.Scene) error {
	ctx := t.Context()
	want, err := s.State(ctx)
	if err != nil {
		return err
	}
	spec := passage.Holding(traffic.MaxLength)
	spec.Silence.Duration = heldFor
	held, err := s.Exchange(ctx, spec)
	if err != nil {
		return err
	}
	if err := moveWithoutLeaders(t, l, client, s); err != nil {
		return err
	}
	if want.Node, err = moveDuringUpdate(t, l, s); err != nil {
		return err
	}
	eventually(t, func() error {
		now, err := s.State(ctx)
		return errors.Join(append(want.Changes(now), err)...)
	})
	eventually(t, func() error {
		idle, err := held.Idle(ctx)
		if err == nil && idle > underWay {
			err = fmt.Errorf("a connection has made no progress for %s", idle)
		}
		return err
	})
	to, from, err := held.Stop(ctx)
	if err != nil {
		return err
	}
	return errors.Join(broken(to.Result), broken(from.Result))
}

// moveWithoutLeaders kills the servers that lead NB and SB when the VM begins to move.
func moveWithoutLeaders(t *testing.T, l *lab.Lab, client kubernetes.Interface, s *passage.Scene) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	nodes := map[string]string{}
	for _, kind := range []string{"nb", "sb"} {
		nodes[kind] = podNode(t, client, leaderOf(t, l, kind))
	}
	writes := startWriting(t, l, nodes["nb"])
	began := time.Now()
	g, err := s.VM.Migrate(ctx, lab.MigrateOptions{To: s.Target})
	if err != nil {
		return err
	}
	for kind, node := range nodes {
		killServer(t, l, node, kind)
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		return fmt.Errorf("the leaders of both databases were killed while a VM moved: %w", err)
	}
	took := time.Since(began)
	everyMemberSeesAll(t, l)
	t.Logf("a VM moved in %s; the leaders of NB on %s and of SB on %s were killed when it began, and the longest time without a write to NB was %s",
		took.Round(100*time.Millisecond), nodes["nb"], nodes["sb"], writes.stop(t, began).Round(10*time.Millisecond))
	return nil
}

// moveDuringUpdate updates controllers, agents and ovn-controllers when both QEMUs are there and before memory is copied, and returns where the VM has to be then: the migration succeeds, or is
// rolled back.
func moveDuringUpdate(t *testing.T, l *lab.Lab, s *passage.Scene) (node string, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	g, err := s.VM.Migrate(ctx, lab.MigrateOptions{To: s.Source, Hold: []kubevirt.Stage{kubevirt.StageMigrate}})
	if err != nil {
		return "", err
	}
	if _, err := g.AwaitPhase(ctx, kubevirtv1.MigrationRunning, kubevirtv1.MigrationFailed); err != nil {
		return "", err
	}
	rollout(t, l, "deployment/godwit-controller", "daemonset/godwit-agent", "daemonset/ovn-controller")
	if err := g.Release(ctx); err != nil {
		return "", err
	}
	vmim, err := g.Await(ctx)
	if err != nil {
		return "", err
	}
	t.Logf("a VM moved in %s, held while controllers, agents and ovn-controllers were updated: %s", time.Since(began).Round(100*time.Millisecond), vmim.Status.Phase)
	if vmim.Status.Phase != kubevirtv1.MigrationSucceeded {
		return s.Target, nil
	}
	return s.Source, nil
}

// broken names the connections that did not last.
func broken(r *traffic.Result) error {
	var errs []error
	for i := range r.Connections {
		if c := &r.Connections[i]; c.Broken != "" || !c.Opened {
			errs = append(errs, fmt.Errorf("TCP connection %d (%s, to %s) broke after %s: %s: %s", c.Number, c.Kind, c.Peer, c.Ended.Round(time.Millisecond), c.Broken, c.Error))
		}
	}
	return errors.Join(errs...)
}
