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

// targetReplaced deletes the target's launcher, and waits for the next one: a virt-controller that is let go on earlier may not know yet that the first is gone, schedule the migration, and fail it for a target that it lacks.
func targetReplaced(t *testing.T, c *cell) {
	t.Helper()
	inTarget := func(p *corev1.Pod) bool { return p.Spec.NodeName == c.target && p.DeletionTimestamp == nil }
	gone := c.deleteLauncher(t, "on "+c.target, inTarget)
	c.awaitLauncher(t, "on "+c.target+" in place of "+gone.Name, func(p *corev1.Pod) bool { return inTarget(p) && p.UID != gone.UID })
}

// deleteLauncher waits for a launcher of the VM that is meant, and deletes it.
func (c *cell) deleteLauncher(t *testing.T, which string, meant func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	p := c.awaitLauncher(t, which, meant)
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		return client.IgnoreNotFound(cluster.api.Delete(ctx, p, client.GracePeriodSeconds(0)))
	})
	return p
}

// awaitLauncher waits for a launcher of the VM that is meant.
func (c *cell) awaitLauncher(t *testing.T, which string, meant func(*corev1.Pod) bool) (found *corev1.Pod) {
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
			if found = &pods[i]; meant(found) {
				return nil
			}
		}
		return fmt.Errorf("VM %s has no launcher %s", c.vm, which)
	})
	return found
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

// machines are where something is struck.
type machines func() []string

// onHub has the API server, onCentral OVN's databases.
func onHub() []string     { return []string{"hub"} }
func onCentral() []string { return cluster.Central() }

// scripted runs a script on machines.
func scripted(on machines, script string, args ...string) strike {
	return func(t *testing.T, _ *cell) {
		t.Helper()
		for _, m := range on() {
			if out, err := cluster.Exec(t.Context(), m, append([]string{"sh", "-c", script}, args...)...); err != nil {
				t.Fatalf("%s: %s %v", script, out, err)
			}
		}
	}
}

// lifted runs a script on machines when the test has ended, whatever became of it.
func lifted(t *testing.T, on machines, script string, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		for _, m := range on() {
			if out, err := cluster.Exec(ctx, m, append([]string{"sh", "-c", script}, args...)...); err != nil {
				t.Errorf("lift a fault of %s: %s: %s %v", m, script, out, err)
			}
		}
	})
}

// signalled finds the process by a word of its command line: both databases have one name.
const signalled = `n=0; for p in $(pidof "$0"); do if grep -q "$1" /proc/$p/cmdline; then kill -"$2" "$p"; n=1; fi; done; test $n = 1`

// frozen stops a process on machines, which answers nobody until it is thawed.
func frozen(on machines, program, word string) strike {
	return func(t *testing.T, c *cell) {
		t.Helper()
		lifted(t, on, signalled, program, word, "CONT") // twice does no harm
		scripted(on, signalled, program, word, "STOP")(t, c)
	}
}

func thawed(on machines, program, word string) strike {
	return scripted(on, signalled, program, word, "CONT")
}

// cut drops what goes to ports of OVN's databases and comes from them.
func cut(ports string) strike {
	return filtered("chain in { type filter hook input priority 0; tcp dport " + ports + " drop; }; chain out { type filter hook output priority 0; tcp sport " + ports + " drop; };")
}

// refused resets connections to ports of OVN's databases.
func refused(ports string) strike {
	return filtered("chain in { type filter hook input priority 0; tcp dport " + ports + " reject with tcp reset; };")
}

func filtered(chains string) strike {
	rules := "table inet fault { " + chains + " }"
	return func(t *testing.T, c *cell) {
		t.Helper()
		lifted(t, onCentral, "nft delete table inet fault 2>/dev/null; true")
		scripted(onCentral, `nft "$0"`, rules)(t, c)
	}
}

var mended = scripted(onCentral, "nft delete table inet fault")
