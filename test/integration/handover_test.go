package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// handoverGroup is where an isolated VM's port is while its connections move along.
const handoverGroup = policy.IngressGroup + "_handover"

// handoverGrace is long enough to look at the group within it, on a machine that has much to do.
const handoverGrace = 10 * time.Second

// TestPolicyHandover follows the group of a VM that moves.
func TestPolicyHandover(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t, withGrace(handoverGrace))
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "move", nil)
	e.create(t, deny(key("move", "p"), "db", "front"))
	t.Run("three writes", func(t *testing.T) { threeWrites(t, e) })
	t.Run("rolled back", func(t *testing.T) { handoverRolledBack(t, e) })
	t.Run("nothing isolates it", func(t *testing.T) { handoverNotIsolated(t, e) })
	t.Run("labels change", func(t *testing.T) { handoverLabels(t, e) })
	handoverRestarts(t, e) // no subtest: the controllers that it starts end with their test
}

func withGrace(d time.Duration) func(*controller.Config) {
	return func(c *controller.Config) { c.HandoverGrace = d }
}

// voyage is a VM between two nodes.
type voyage struct {
	vm     types.NamespacedName
	vmi    *kubevirtv1.VirtualMachineInstance
	source *corev1.Pod
	target *corev1.Pod
	vmim   *kubevirtv1.VirtualMachineInstanceMigration
}

func (e *env) voyage(t *testing.T, name, app string) *voyage {
	t.Helper()
	v := &voyage{vm: key("move", name)}
	v.vmi = e.vmi(t, v.vm, func(vmi *kubevirtv1.VirtualMachineInstance) { vmi.Labels = map[string]string{"app": app} })
	v.source = e.launcher(t, v.vmi, name+"-1", "n1", nil)
	e.asks(t, v.vm, "n1", "")
	return v
}

// begin makes the target, and waits until the row asks for both.
func (v *voyage) begin(t *testing.T, e *env) {
	t.Helper()
	v.vmim = e.migration(t, v.vmi)
	time.Sleep(time.Until(v.source.CreationTimestamp.Add(time.Second))) // a target is younger than its source, and creation times have whole seconds
	v.target = e.launcher(t, v.vmi, v.vm.Name+"-2", "n2", v.vmim)
	e.asks(t, v.vm, "n1,n2", "rarp")
}

// arrive ends the migration, and waits until the row asks for the target.
func (v *voyage) arrive(t *testing.T, e *env) {
	t.Helper()
	e.migrationPhase(t, v.vmim, kubevirtv1.MigrationSucceeded)
	e.podPhase(t, v.source, corev1.PodSucceeded)
	e.asks(t, v.vm, "n2", "")
}

// moves says whether the database lets the VM's connections move along.
func (v *voyage) moves(t *testing.T, e *env) bool {
	t.Helper()
	return stored(t, e.central).groups[handoverGroup][string(ident.VMPort(v.vm.Namespace, v.vm.Name, ident.DefaultNetwork))]
}

func (v *voyage) stops(t *testing.T, e *env) {
	t.Helper()
	eventually(t, func() error {
		if v.moves(t, e) {
			return fmt.Errorf("the connections of VM %s still move along", v.vm)
		}
		return nil
	})
}

// The port is in the group with the write that asks for both chassis, and out of it with one write after the grace.
func threeWrites(t *testing.T, e *env) {
	v := e.voyage(t, "writes", "db")
	if v.moves(t, e) {
		t.Error("before it moves it is in the group")
	}
	e.mayAttach(t, v.source, v1alpha1.Attach{Chassis: "n1"})
	before := e.journal.quiet(t)
	v.begin(t, e)
	if !v.moves(t, e) {
		t.Error("the row asks for both chassis, and the port is not in the group")
	}
	arrives := time.Now()
	v.arrive(t, e)
	arrived := time.Now()
	if !v.moves(t, e) {
		t.Error("it has just arrived, and is not in the group any more")
	}
	v.stops(t, e)
	if d := time.Since(arrives); d < handoverGrace {
		t.Errorf("%s after it began to arrive, with a grace of %s, it is not in the group any more", d, handoverGrace)
	}
	if written := e.journal.since(before); len(written) != 3 {
		t.Errorf("northbound transactions of a migration, want 3: both chassis, one, the end of the grace:\n%s", strings.Join(written, "\n"))
	}
	row, err := e.row(t, v.vm)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := time.Parse(time.RFC3339Nano, row.ExternalIDs[ident.KeyMoved]); err != nil || at.Before(arrives) || at.After(arrived) {
		t.Errorf("the row says that the VM moved at %q, it arrived between %s and %s (%v)", row.ExternalIDs[ident.KeyMoved], arrives, arrived, err)
	}
}

func handoverRolledBack(t *testing.T, e *env) {
	v := e.voyage(t, "back", "db")
	v.begin(t, e)
	e.podPhase(t, v.target, corev1.PodFailed)
	e.migrationPhase(t, v.vmim, kubevirtv1.MigrationFailed)
	e.asks(t, v.vm, "n1", "")
	v.stops(t, e)
}

// A port that no policy is about is in no group, or ACLs would begin to apply to its switch; it is in when a policy comes to be about it on its way.
func handoverNotIsolated(t *testing.T, e *env) {
	v := e.voyage(t, "free", "other")
	v.begin(t, e)
	if v.moves(t, e) {
		t.Error("nothing isolates the VM, and its port is in the group")
	}
	e.create(t, deny(key("move", "other"), "other", "front"))
	eventually(t, func() error {
		if !v.moves(t, e) {
			return fmt.Errorf("VM %s is isolated now and moves, and its port is not in the group", v.vm)
		}
		return nil
	})
	v.arrive(t, e)
	v.stops(t, e)
}

// The labels of a VMI count on its way too, whatever its launchers say: with those that a policy selects its port is isolated, and its connections move along;
// without, it is in neither group.
func handoverLabels(t *testing.T, e *env) {
	v := e.voyage(t, "labels", "db")
	name := ident.VMPort(v.vm.Namespace, v.vm.Name, ident.DefaultNetwork)
	becomes := func(when string, isolated bool) {
		t.Helper()
		eventually(t, func() error {
			if rows := stored(t, e.central); rows.isolated(name) != isolated || rows.groups[handoverGroup][string(name)] != isolated {
				return fmt.Errorf("%s: VM %s is isolated: %t, its connections move along: %t, want both %t", when, v.vm, rows.isolated(name), rows.groups[handoverGroup][string(name)], isolated)
			}
			return nil
		})
	}
	v.begin(t, e)
	becomes("on its way", true)
	for _, launcher := range []client.Object{v.source, v.target} {
		e.label(t, launcher, "app", "free")
	}
	e.createAndServe(t, key("move", "after-launchers")) // what comes after the labels of launchers is served: they have been seen
	becomes("its launchers have other labels", true)
	e.label(t, v.vmi, "app", "free")
	becomes("its VMI has other labels", false)
	for _, launcher := range []client.Object{v.source, v.target} {
		e.label(t, launcher, "app", "db")
	}
	e.createAndServe(t, key("move", "after-both"))
	becomes("its launchers have the old labels again", false)
	e.label(t, v.vmi, "app", "db")
	becomes("its VMI has the old labels again", true)
	v.arrive(t, e)
	becomes("it has arrived", true)
	e.label(t, v.vmi, "app", "free")
	becomes("in the grace its VMI gets other labels", false)
}

// createAndServe makes a pod, and waits until it is served.
func (e *env) createAndServe(t *testing.T, k types.NamespacedName) {
	t.Helper()
	e.create(t, labelledPod(k, "n1", "front"))
	e.served(t, k)
}

// Who comes after a controller that went away in the middle finds in the row what to do.
func handoverRestarts(t *testing.T, e *env) {
	v := e.voyage(t, "restarts", "db")
	v.begin(t, e)
	e.stop()
	e.start(t, withGrace(time.Hour))
	e.create(t, labelledPod(key("move", "served"), "n1", "front"))
	e.served(t, key("move", "served"))
	if !v.moves(t, e) {
		t.Error("on its way, after a restart, the port is not in the group")
	}
	v.arrive(t, e)
	e.stop()
	if !v.moves(t, e) {
		t.Error("in the grace, the port is not in the group")
	}
	time.Sleep(time.Second)
	e.start(t, withGrace(time.Second)) // which has ended while nobody was there
	v.stops(t, e)

	off := e.voyage(t, "off", "db")
	off.begin(t, e)
	if !off.moves(t, e) {
		t.Error("the row asks for both chassis, and the port is not in the group")
	}
	e.stop()
	e.start(t, func(c *controller.Config) { c.HandoverRules = false })
	off.stops(t, e)
	off.arrive(t, e)
	if off.moves(t, e) {
		t.Error("with the handover off, the port is in the group")
	}
}
