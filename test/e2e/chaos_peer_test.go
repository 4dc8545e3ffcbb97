package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// What was seen at the best-known peer, each by itself. A VMIM that is Scheduling before its target pod can be seen is in test/integration.

// Options five seconds late: there, source and target both claimed the port meanwhile, and took it from each other 36 times. Here the target does not attach before.
func TestChaosPeerLateOptions(t *testing.T) {
	late := fault{name: "options-late", at: []kubevirt.Stage{kubevirt.StageTargetPod}, ends: moved, back: led, strike: func(t *testing.T, c *cell) {
		t.Helper()
		signal := func(ctx context.Context, sig string) error {
			for _, node := range cluster.NodeNames() { // the controller runs on two of three
				if _, err := cluster.Exec(ctx, node, "sh", "-c", `for p in $(pidof godwit-controller); do kill -"$0" "$p"; done`, sig); err != nil {
					return err
				}
			}
			return nil
		}
		t.Cleanup(func() {
			if err := signal(context.WithoutCancel(t.Context()), "CONT"); err != nil {
				t.Error(err)
			}
		})
		if err := signal(t.Context(), "STOP"); err != nil {
			t.Fatal(err)
		}
		c.release(t)
		var scheduled time.Time
		eventually(t, 20*time.Second, func(ctx context.Context) error {
			target, err := c.launcher(ctx, string(c.g.UID))
			if err == nil && target.Spec.NodeName == "" {
				err = fmt.Errorf("target pod %s has no node", target.Name)
			}
			return err
		})
		scheduled = time.Now()
		time.Sleep(5 * time.Second)
		if rows, mains := chaos.history.since(c.vm.portName(), c.start); len(path(rows)) != 1 || len(mains) != 1 {
			t.Errorf("%s after the target was scheduled, nobody being there to write, the row asked for %v and the main chassis were %v", time.Since(scheduled), path(rows), mains)
		}
		if err := signal(t.Context(), "CONT"); err != nil {
			t.Fatal(err)
		}
		c.struck = time.Now()
	}}
	(&cell{fault: late, moment: kubevirt.StageTargetPod}).on(t, 0)
}

// An old launcher is deleted during a live migration, once on the node that the VM leaves alone and once on the node that it goes to: there, the live migration lost its
// options.
func TestChaosPeerOldLauncherDeleted(t *testing.T) {
	deletes := fault{name: "old-launcher-deleted", ends: moved, strike: func(t *testing.T, c *cell) {
		t.Helper()
		c.deleteLauncher(t, "that has ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		c.unchanged(t)
	}}
	course := fault{name: "old-launcher-deleted", ends: moved, run: func(t *testing.T, c *cell) {
		t.Helper()
		c.hasMigrated(t)
		source := c.vm.node(t)
		c.next(t, c.vm.another(t), deletes, kubevirt.StageSwitchover)
		c.next(t, source, deletes, kubevirt.StageDetected) // its old launcher is on the node that it comes back to
	}}
	(&cell{fault: course}).on(t, 0)
}

// The controller is restarted during a live migration while an older one, finished, is still there: the old one was replayed over the live one.
func TestChaosPeerRestartWithFinishedMigration(t *testing.T) {
	restart := fault{name: "restart", ends: moved, strike: func(t *testing.T, c *cell) {
		t.Helper()
		leaderKilled(t, c)
		led(t, c)
		c.unchanged(t)
	}}
	course := fault{name: "restart-with-finished-migration", ends: moved, run: func(t *testing.T, c *cell) {
		t.Helper()
		c.hasMigrated(t)
		c.next(t, c.vm.another(t), restart, kubevirt.StageSwitchover)
		all, err := c.vm.Migrations(t.Context())
		if err != nil || len(all) < 2 {
			t.Errorf("VM %s has %d migrations (%v), want the old one to be there still", c.vm, len(all), err)
		}
	}}
	(&cell{fault: course}).on(t, 0)
}

// hasMigrated makes sure that a finished migration, and the launcher that it left, are there.
func (c *cell) hasMigrated(t *testing.T) {
	t.Helper()
	all, err := c.vm.Migrations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(all, func(g kubevirtv1.VirtualMachineInstanceMigration) bool {
		return g.Status.Phase == kubevirtv1.MigrationSucceeded
	}) {
		c.next(t, c.target, undisturbed, "")
	}
}

// launcher is the VM's target pod of a migration.
func (c *cell) launcher(ctx context.Context, migration string) (*corev1.Pod, error) {
	vmi, err := c.vm.VMI(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := c.vm.Launchers(ctx, vmi)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pods[i].Labels[kubevirtv1.MigrationJobLabel] == migration {
			return &pods[i], nil
		}
	}
	return nil, fmt.Errorf("migration %s of VM %s has no target pod", migration, c.vm)
}

// unchanged: for a second, the row goes on asking for both chassis.
func (c *cell) unchanged(t *testing.T) {
	t.Helper()
	time.Sleep(time.Second)
	rows, _ := chaos.history.since(c.vm.portName(), c.start)
	if last := rows[len(rows)-1]; last != (asked{c.source + "," + c.target, "rarp"}) {
		t.Errorf("the row of VM %s asks for %v in a live migration from %s to %s", c.vm, last, c.source, c.target)
	}
}
