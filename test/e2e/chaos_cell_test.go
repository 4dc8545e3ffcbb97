package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/reach"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// ending is where the VM is after a fault.
type ending string

const (
	moved  ending = "moved"  // it runs on the target
	stayed ending = "stayed" // it runs on the source, which it never left for good
	died   ending = "died"   // KubeVirt has started another instance
)

// whileCopying is a moment that is no stage: memory is copied, and QEMU will switch over by itself.
const whileCopying kubevirt.Stage = "Copying"

// fault is a row of the matrix.
type fault struct {
	name string
	// at are the moments at which it strikes: the migration is held there, in its default nowhere, when it is a fault of the migration's own.
	at []kubevirt.Stage
	// options are the migration's.
	options lab.MigrateOptions
	// strike brings it about; the migration goes on when it returns.
	strike func(t *testing.T, c *cell)
	// outage is how long what was struck is away until lift brings it back. The VM need not answer meanwhile, nor for silent after that, if silent is not zero.
	outage time.Duration
	lift   func(t *testing.T, c *cell)
	silent time.Duration
	// grace is how much longer the row may take than promptly.
	grace time.Duration
	// deaf: the API server is what is away, and nobody can be told to go on before it is back.
	deaf bool
	// back waits until what was struck is there again.
	back func(t *testing.T, c *cell)
	// restore repairs, when the VM has recovered, what stays broken of itself.
	restore func(t *testing.T, c *cell)
	ends    ending
	// detour: the target is taken back and asked for once more.
	detour bool
	// rewound: the VM ran on the target and goes on from before that on the source. What it told its peers meanwhile is not undone.
	rewound bool
	// unrecorded: there need not be a PortMigration.
	unrecorded bool
	// slow faults are not drawn.
	slow bool
	// run is another course of events than one migration.
	run func(t *testing.T, c *cell)
}

// cell is a fault at a moment, done to a VM.
type cell struct {
	fault
	moment kubevirt.Stage
	vm     *machine

	source, target string
	g              *lab.Migration
	instance       types.UID
	start          mark
	begun, struck  time.Time
	from           reach.Pod
	traffic        *traffic.Run
	// patient waits, when all is well again, until connections have got over it.
	patient func()
}

func (c *cell) String() string {
	if c.moment == "" {
		return c.name
	}
	return c.name + "@" + string(c.moment)
}

// play does the cell and looks at everything that must hold after it.
func (c *cell) play(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(20*time.Second))
	defer cancel()
	if err := c.vm.AwaitAnswer(ctx); err != nil {
		t.Fatalf("before anything was done: %v", err)
	}
	settled(t)
	c.aim(t)
	c.watch(t)
	if c.run != nil {
		c.run(t, c)
	} else {
		c.migrate(t)
	}
	if c.restore != nil {
		c.restore(t, c)
		c.walked(t) // what comes back asks for nothing
	}
	c.stop(t)
	consistent(t)
}

// aim chooses where the VM goes, and a pod on the third node to watch it from.
func (c *cell) aim(t *testing.T) {
	t.Helper()
	vmi, err := c.vm.VMI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.instance, c.source = vmi.UID, vmi.Status.NodeName
	c.target = c.vm.another(t)
	c.from = chaos.peers[c.vm.another(t, c.target)]
}

// migrate begins one migration, lets the fault strike, and sees the VM recover.
func (c *cell) migrate(t *testing.T) {
	t.Helper()
	c.start, c.begun = chaos.history.now(c.vm.portName()), time.Now()
	o := c.options
	o.To = c.target
	switch c.moment {
	case "":
	case whileCopying:
		o.Bandwidth = 12 << 20
	default:
		o.Hold = append(slices.Clone(o.Hold), c.moment)
	}
	c.g = c.vm.begin(t, o)
	c.await(t)
	c.struck = time.Now()
	if c.strike != nil {
		c.strike(t, c)
	}
	if !c.deaf {
		c.release(t)
	}
	if c.outage > 0 {
		time.Sleep(time.Until(c.struck.Add(c.outage)))
		c.lift(t, c)
	}
	if c.deaf {
		c.release(t)
	}
	ended := c.ended(t)
	if c.back != nil {
		c.back(t, c)
		ended = time.Now()
	}
	c.recovered(t, ended)
}

// release lets the migration go on that was held.
func (c *cell) release(t *testing.T) {
	t.Helper()
	if c.moment == "" || c.moment == whileCopying {
		return
	}
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		err := c.g.Release(ctx)
		if apierrors.IsNotFound(err) {
			return nil // cancelled and gone
		}
		return err
	})
}

// await waits for the cell's moment.
func (c *cell) await(t *testing.T) {
	t.Helper()
	if c.moment == "" {
		return
	}
	eventually(t, time.Minute, func(context.Context) error {
		entries, err := c.journal()
		if err != nil {
			return err
		}
		for _, e := range entries {
			switch {
			case e.Event == kubevirt.EventHeld && e.Detail == string(c.moment):
				return nil
			case c.moment == whileCopying && e.Event == string(guest.MigrationChanged) && e.Status == string(guest.Active):
				return nil
			}
		}
		return fmt.Errorf("migration %s has not come to %s: see godwit-lab logs hub/kubevirt", c.g, c.moment)
	})
}

// journal is what QEMU did for the VM since the migration was begun.
func (c *cell) journal() ([]kubevirt.Entry, error) {
	entries, err := c.vm.Journal()
	return slices.DeleteFunc(entries, func(e kubevirt.Entry) bool { return e.Time.Before(c.begun) }), err
}

// ended waits until KubeVirt has come to its end with the migration, or has started the VM again, and returns when that was seen.
func (c *cell) ended(t *testing.T) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Minute))
	defer cancel()
	if c.ends == died {
		_, err := c.vm.Await(ctx, "started again", func(vmi *kubevirtv1.VirtualMachineInstance) bool {
			return vmi.UID != c.instance && vmi.Status.Phase == kubevirtv1.Running
		})
		if err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}
	vmim, err := c.g.AwaitPhase(ctx, kubevirtv1.MigrationSucceeded, kubevirtv1.MigrationFailed)
	at := time.Now()
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if gone := err != nil; !gone && (vmim.Status.Phase == kubevirtv1.MigrationSucceeded) != (c.ends == moved) && vmim.DeletionTimestamp == nil {
		t.Errorf("migration %s is %s, the VM should have %s", c.g, vmim.Status.Phase, c.ends)
	}
	return at
}
