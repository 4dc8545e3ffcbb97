package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// Courses are cells of more than one migration.

// next makes one more migration of a cell: from where the VM is, to a node; the fault's own course is not repeated.
func (c *cell) next(t *testing.T, to string, f fault, at kubevirt.Stage) {
	t.Helper()
	source := c.vm.node(t)
	one := *c
	one.fault, one.moment, one.source, one.target = f, at, source, to
	one.migrate(t)
	c.g, c.begun, c.ends = one.g, one.begun, one.ends
}

var (
	undisturbed  = fault{name: "undisturbed", ends: moved}
	failsLate    = fault{name: "target-fails-late", options: lab.MigrateOptions{Fault: kubevirt.FaultTargetLate}, ends: stayed}
	targetEnds   = fault{name: "target-resumed", options: lab.MigrateOptions{Fault: kubevirt.FaultTargetResumed}, ends: stayed, rewound: true}
	cancelsEarly = fault{name: "cancelled", strike: migrationCancelled, ends: stayed}
)

// afterFailures: three migrations fail, each in its own way, and then one to the same node succeeds.
func afterFailures(t *testing.T, c *cell) {
	t.Helper()
	c.next(t, c.target, failsLate, "")
	c.next(t, c.target, cancelsEarly, kubevirt.StageSwitchover)
	c.next(t, c.target, targetEnds, "")
	c.next(t, c.target, undisturbed, "")
}

// staleRecord: a migration is cancelled before its hand-off, so that the VMI goes on telling of the one before; then comes another.
func staleRecord(t *testing.T, c *cell) {
	t.Helper()
	c.next(t, c.target, undisturbed, "")
	c.next(t, c.source, cancelsEarly, kubevirt.StageHandOff)
	c.next(t, c.source, undisturbed, "")
}

// paused: the VM moves while its user has it paused, and is unpaused on the target. QEMU announces it only then.
func paused(t *testing.T, c *cell) {
	t.Helper()
	pause := func(change string, want bool) {
		t.Helper()
		if _, err := kubectl(t.Context(), "-n", c.vm.Namespace, "annotate", "vmi", c.vm.Name, kubevirt.PauseAnnotation+change); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
		defer cancel()
		_, err := c.vm.Await(ctx, "paused or not, as it is to be", func(vmi *kubevirtv1.VirtualMachineInstance) bool {
			return want == slices.ContainsFunc(vmi.Status.Conditions, func(k kubevirtv1.VirtualMachineInstanceCondition) bool {
				return k.Type == kubevirtv1.VirtualMachineInstancePaused && k.Status == corev1.ConditionTrue
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.next(t, c.target, fault{
		name: c.name, ends: moved, strike: func(*testing.T, *cell) { pause("=", true) }, back: func(*testing.T, *cell) { pause("-", false) },
	}, c.moment)
}

// onAndOnAtOnce: three migrations are asked for at once, over all nodes and home again.
func onAndOnAtOnce(t *testing.T, c *cell) {
	t.Helper()
	c.start, c.begun, c.ends = chaos.history.now(c.vm.portName()), time.Now(), moved
	from, way, mains := c.source, []string{c.source}, []string{c.source}
	var all []*lab.Migration
	for i, to := range []string{c.target, c.vm.another(t, c.target), c.source} {
		// KubeVirt takes them in the order of their creation; those of one second in that of their names here.
		name := fmt.Sprintf("%s-%d-%c", c.vm.Name, c.begun.Unix(), 'a'+i)
		all = append(all, c.vm.begin(t, lab.MigrateOptions{Name: name, To: to}))
		way, mains = append(way, from+","+to, to), append(mains, to)
		from = to
	}
	for _, g := range all {
		c.vm.succeeded(t, g)
		recorded(t, g)
	}
	c.g = all[len(all)-1]
	_, err := within(t.Context(), time.Now(), patience(promptly), func(ctx context.Context) error {
		vmi, err := c.vm.VMI(ctx)
		if err != nil {
			return err
		}
		return c.tidy(ctx, vmi)
	})
	if err != nil {
		t.Error(err)
	}
	c.wentBy(t, [][]string{way}, mains)
}

// tenAtOnce: the VM and nine others move at once; KubeVirt lets five go at a time, two from each node.
func tenAtOnce(t *testing.T, c *cell) {
	t.Helper()
	const vms = 10
	cells := []*cell{c}
	for i := range vms - 1 {
		nodes := cluster.NodeNames()
		vm := bootVM(t, lab.VMOptions{Namespace: chaosNamespace, Name: fmt.Sprintf("crowd-%d", i), Node: nodes[i%len(nodes)]})
		cells = append(cells, &cell{fault: c.fault, vm: vm})
	}
	for _, one := range cells {
		one.ends = moved
		if one != c {
			one.aim(t)
		}
		one.start, one.begun = chaos.history.now(one.vm.portName()), time.Now()
		one.g = one.vm.begin(t, lab.MigrateOptions{To: one.target})
	}
	for _, one := range cells {
		ctx, cancel := context.WithTimeout(t.Context(), patience(4*time.Minute))
		_, err := one.g.AwaitSuccess(ctx)
		if err == nil {
			err = one.vm.AwaitAnswer(ctx)
		}
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		one.recorded(t)
		one.walked(t)
		vmi, err := one.vm.VMI(t.Context())
		if err = errors.Join(err, one.tidy(t.Context(), vmi)); err != nil {
			t.Error(err)
		}
	}
}
