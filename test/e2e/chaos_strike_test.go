package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// strike is how a fault is brought about.
type strike func(t *testing.T, c *cell)

// all strikes one after another.
func all(strikes ...strike) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		for _, s := range strikes {
			s(t, c)
		}
	}
}

func onSource(c *cell) string { return c.source }
func onTarget(c *cell) string { return c.target }

// killed kills a node's processes of a name.
func killed(name string, node func(*cell) string) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		eventually(t, 20*time.Second, func(ctx context.Context) error { return kill(ctx, node(c), name) })
	}
}

// leaderKilled kills the leading controller.
func leaderKilled(t *testing.T, c *cell) {
	t.Helper()
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		node, err := leader(ctx)
		if err != nil {
			return err
		}
		return kill(ctx, node, "godwit-controller")
	})
	c.struck = time.Now()
}

// led waits until a controller leads that was not struck.
func led(t *testing.T, c *cell) {
	t.Helper()
	since := c.struck.Add(c.outage)
	eventually(t, time.Minute, func(ctx context.Context) error {
		var lease coordinationv1.Lease
		err := cluster.api.Get(ctx, types.NamespacedName{Namespace: "godwit-system", Name: "godwit-controller"}, &lease)
		if err == nil && (lease.Spec.RenewTime == nil || !lease.Spec.RenewTime.After(since)) {
			err = fmt.Errorf("nobody leads since %s: the lease is from %v", since.Format(time.TimeOnly), lease.Spec.RenewTime)
		}
		return err
	})
}

// everybodyBack waits for agents and controllers.
func everybodyBack(t *testing.T, c *cell) {
	t.Helper()
	led(t, c)
	settled(t)
}

// migrationCancelled cancels the migration.
func migrationCancelled(t *testing.T, c *cell) {
	t.Helper()
	if err := c.g.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// podDeleted deletes the VM's launcher on a node as an operator does who waits for nothing.
func podDeleted(node func(*cell) string) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		c.deleteLauncher(t, "on "+node(c), func(p *corev1.Pod) bool {
			return p.Spec.NodeName == node(c) && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
		})
	}
}

// deleteLauncher waits for a launcher of the VM that is meant, and deletes it.
func (c *cell) deleteLauncher(t *testing.T, which string, meant func(*corev1.Pod) bool) {
	t.Helper()
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		vmi, err := c.vm.VMI(ctx)
		if err != nil {
			return err
		}
		pods, err := c.vm.Launchers(ctx, vmi)
		if err != nil {
			return err
		}
		for i := range pods {
			if p := &pods[i]; meant(p) {
				return client.IgnoreNotFound(cluster.api.Delete(ctx, p, client.GracePeriodSeconds(0)))
			}
		}
		return fmt.Errorf("VM %s has no launcher %s", c.vm, which)
	})
}

// crashed cuts a node's power.
func crashed(node func(*cell) string) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		if err := cluster.Node(node(c)).Crash(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // whatever becomes of the test
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(2*time.Minute))
			defer cancel()
			if err := cluster.Node(node(c)).Start(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// unready waits until Kubernetes has noticed: before, it would start the VM again where nobody answers.
func unready(node func(*cell) string) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		eventually(t, 3*time.Minute, func(ctx context.Context) error {
			var n corev1.Node
			if err := cluster.api.Get(ctx, types.NamespacedName{Name: node(c)}, &n); err != nil {
				return err
			}
			// The scheduler goes by the taint, which comes after the condition.
			if !slices.ContainsFunc(n.Spec.Taints, func(x corev1.Taint) bool {
				return x.Key == corev1.TaintNodeUnreachable && x.Effect == corev1.TaintEffectNoSchedule
			}) {
				return fmt.Errorf("%s is down and not tainted as unreachable: %v", n.Name, n.Spec.Taints)
			}
			return nil
		})
	}
}

// booted starts a node again, and with it what a VM has left there.
func booted(node func(*cell) string) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Minute))
		defer cancel()
		if err := cluster.Node(node(c)).Start(ctx); err != nil {
			t.Fatal(err)
		}
		settled(t)
	}
}

// onHub runs a script on the machine of the API server and the databases.
func onHub(script string, args ...string) strike {
	return func(t *testing.T, _ *cell) {
		t.Helper()
		if out, err := cluster.Exec(t.Context(), "hub", append([]string{"sh", "-c", script}, args...)...); err != nil {
			t.Fatalf("%s: %s %v", script, out, err)
		}
	}
}

// signalled finds the process by a word of its command line: both databases have one name.
const signalled = `n=0; for p in $(pidof "$0"); do if grep -q "$1" /proc/$p/cmdline; then kill -"$2" "$p"; n=1; fi; done; test $n = 1`

// frozen stops a process of the hub, which answers nobody until it is thawed.
func frozen(program, word string) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		t.Cleanup(func() { // twice does no harm
			ctx := context.WithoutCancel(t.Context())
			if out, err := cluster.Exec(ctx, "hub", "sh", "-c", signalled, program, word, "CONT"); err != nil {
				t.Errorf("let %s go on: %s %v", program, out, err)
			}
		})
		onHub(signalled, program, word, "STOP")(t, c)
	}
}

func thawed(program, word string) strike { return onHub(signalled, program, word, "CONT") }

// cut drops what goes to a port of the hub and comes from it.
func cut(port string) strike {
	return filtered("chain in { type filter hook input priority 0; tcp dport " + port + " drop; }; chain out { type filter hook output priority 0; tcp sport " + port + " drop; };")
}

// refused resets connections to a port of the hub.
func refused(port string) strike {
	return filtered("chain in { type filter hook input priority 0; tcp dport " + port + " reject with tcp reset; };")
}

func filtered(chains string) strike {
	rules := "table inet fault { " + chains + " }"
	return func(t *testing.T, c *cell) {
		t.Helper()
		t.Cleanup(func() {
			ctx := context.WithoutCancel(t.Context())
			if out, err := cluster.Exec(ctx, "hub", "sh", "-c", "nft delete table inet fault 2>/dev/null; true"); err != nil {
				t.Errorf("lift the cut: %s %v", out, err)
			}
		})
		onHub(`nft "$0"`, rules)(t, c)
	}
}

var mended = onHub("nft delete table inet fault")
