package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
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
	// outage is how long what was struck is away until lift brings it back. The VM need not answer meanwhile if silent is set.
	outage time.Duration
	lift   func(t *testing.T, c *cell)
	silent bool
	// deaf: the API server is what is away, and nobody can be told to go on before it is back.
	deaf bool
	// back waits until what was struck is there again.
	back func(t *testing.T, c *cell)
	ends ending
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
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

// watch begins traffic to the VM.
func (c *cell) watch(t *testing.T) {
	t.Helper()
	spec := traffic.Usual(c.vm.ips...)
	spec.Echo.Connections, spec.Silence = 6, traffic.Duration{Duration: time.Minute}
	run, err := traffic.Begin(t.Context(), podPlace(t, c.from), spec)
	if err != nil {
		t.Fatal(err)
	}
	c.traffic = run
	eventually(t, 20*time.Second, func(context.Context) error {
		if s := run.Status(); s.Open < s.Wanted || s.Replied == 0 {
			return fmt.Errorf("traffic to VM %s has not begun: %+v", c.vm, s)
		}
		return nil
	})
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
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
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

// recovered sees the network recover promptly, and its record be complete.
func (c *cell) recovered(t *testing.T, since time.Time) {
	t.Helper()
	before := c.traffic.Status().Replied
	node := map[ending]string{moved: c.target, stayed: c.source}[c.ends]
	clean := within(t, since, patience(promptly), func(ctx context.Context) error {
		vmi, err := c.vm.VMI(ctx)
		if err != nil {
			return err
		}
		if node != "" && vmi.Status.NodeName != node {
			return fmt.Errorf("VM %s is on %s, want %s", c.vm, vmi.Status.NodeName, node)
		}
		return c.tidy(ctx, vmi)
	})
	answered := within(t, since, c.patience(), func(context.Context) error {
		if now := c.traffic.Status().Replied; now < before+20 {
			return fmt.Errorf("VM %s does not answer: %d probes in %s", c.vm, now-before, time.Since(since).Round(time.Millisecond))
		}
		return nil
	})
	t.Logf("%s from %s to %s: after KubeVirt's recovery the VM answered in %d ms, its row was clean in %d ms", c, c.source, c.target, answered.Milliseconds(),
		clean.Milliseconds())
	c.recorded(t)
	c.walked(t)
}

// patience is for the VM's answer: one that was started again has to boot.
func (c *cell) patience() time.Duration {
	if c.ends == died {
		return patience(promptly + 15*time.Second)
	}
	return patience(promptly)
}

// within tries until check succeeds, at most until d after since, and returns how long after since that was.
func within(t *testing.T, since time.Time, d time.Duration, check func(context.Context) error) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		err := check(ctx)
		took := time.Since(since)
		if err == nil {
			return took
		}
		if took > d {
			t.Fatalf("%s after KubeVirt's recovery: %v", took.Round(time.Millisecond), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tidy is nil when the VM's row is the one that it always was, and asks for the VM's node with nothing left of a migration but its stamp.
func (c *cell) tidy(ctx context.Context, vmi *kubevirtv1.VirtualMachineInstance) error {
	row, err := c.vm.portRow(ctx)
	if err != nil {
		return err
	}
	node, o := vmi.Status.NodeName, row.Options
	stamp := row.ExternalIDs[migration.KeyMigration]
	switch {
	case row.UUID != c.vm.row:
		return fmt.Errorf("the row of VM %s was %s, is %s", c.vm, c.vm.row, row.UUID)
	case o["requested-chassis"] != node, o["activation-strategy"] != "", o["iface-id-ver"] != string(vmi.UID):
		return fmt.Errorf("VM %s, UID %s, runs on %s, its row has %v", c.vm, vmi.UID, node, o)
	case c.ends == died && stamp != "":
		return fmt.Errorf("VM %s was started again, its row is stamped by migration %s of the instance before", c.vm, stamp)
	case c.ends == moved && stamp != string(c.g.UID):
		return fmt.Errorf("the row of VM %s is stamped by migration %q, want %s", c.vm, stamp, c.g.UID)
	}
	ips, err := c.vm.Addresses(ctx)
	if err == nil && !slices.Equal(ips, c.vm.ips) {
		err = fmt.Errorf("VM %s had %v, has %v", c.vm, c.vm.ips, ips)
	}
	return err
}

// recorded: what was begun has an end on record.
func (c *cell) recorded(t *testing.T) {
	t.Helper()
	want := map[ending]v1alpha1.MigrationResult{moved: v1alpha1.MigrationSucceeded, stayed: v1alpha1.MigrationFailed}[c.ends]
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		pm, err := findRecord(ctx, c.g)
		switch {
		case errors.Is(err, errNoRecord) && c.unrecorded:
			return nil
		case err != nil:
			return err
		case !pm.Status.Over(), want != "" && pm.Status.Result != want:
			return fmt.Errorf("PortMigration %s: the VM has %s, its status is %+v", pm.Name, c.ends, pm.Status)
		}
		return nil
	})
}

// walked looks at all that the row has asked for, and at every change of the main chassis: the way was the shortest there is.
func (c *cell) walked(t *testing.T) {
	t.Helper()
	s, d := c.source, c.target
	ways := map[ending][][]string{moved: {{s, s + "," + d, d}}, stayed: {{s, s + "," + d, s}, {s}}}[c.ends]
	mains := map[ending][]string{moved: {s, d}, stayed: {s}}[c.ends]
	if c.detour {
		ways = append(ways, []string{s, s + "," + d, s, s + "," + d, d})
	}
	if c.ends == died {
		ways, mains = c.deaths(t), nil
	}
	c.wentBy(t, ways, mains)
}

// deaths are the ways of a VM that died: it may have been anywhere in its migration, and is started again anywhere.
func (c *cell) deaths(t *testing.T) [][]string {
	t.Helper()
	s, d, n := c.source, c.target, c.vm.node(t)
	var ways [][]string
	for _, began := range [][]string{{s}, {s, s + "," + d}, {s, s + "," + d, s}, {s, s + "," + d, d}} {
		ways = append(ways, append(slices.Clone(began), "godwit-none", n))
	}
	return ways
}

// wentBy fails the test unless the row went one of the ways, and the main chassis were mains; nil for any that are on the way.
func (c *cell) wentBy(t *testing.T, ways [][]string, mains []string) {
	t.Helper()
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		rows, was := chaos.history.since(c.vm.portName(), c.start)
		if err := wellFormed(rows); err != nil {
			return err
		}
		went := path(rows)
		if !slices.ContainsFunc(ways, func(way []string) bool { return slices.Equal(way, went) }) {
			return fmt.Errorf("the row of VM %s asked for %v, want one of %v", c.vm, went, ways)
		}
		if mains == nil {
			mains = slices.Compact(slices.DeleteFunc(slices.Clone(went), func(s string) bool { return s == "godwit-none" || strings.Contains(s, ",") }))
		}
		if !slices.Equal(was, mains) {
			return fmt.Errorf("the main chassis of VM %s were %v, want %v", c.vm, was, mains)
		}
		return nil
	})
}

// stalled is for how long nothing could come from the VM, and when that began: QEMU had stopped it, or what was struck is needed for it to answer.
func (c *cell) stalled(t *testing.T) (from time.Time, d time.Duration) {
	t.Helper()
	entries, err := c.journal()
	if err != nil {
		t.Fatal(err)
	}
	var resumed time.Time
	for _, e := range entries {
		switch {
		case e.Event == string(guest.Stopped) && from.IsZero():
			from = e.Time
		case e.Event == string(guest.Resumed):
			resumed = e.Time
		}
	}
	if !from.IsZero() {
		d = max(0, resumed.Sub(from))
	}
	if c.silent {
		if from.IsZero() || c.struck.Before(from) {
			from = c.struck
		}
		d = max(d, c.struck.Add(c.outage).Sub(from))
	}
	return from, d
}

// stop ends the traffic, and looks at what became of it.
func (c *cell) stop(t *testing.T) {
	t.Helper()
	from, stall := c.stalled(t)
	// A sender that got no answer for some time may wait as long again before it tries once more.
	time.Sleep(max(500*time.Millisecond, time.Until(from.Add(2*stall+500*time.Millisecond))))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	result, err := c.traffic.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if c.ends == died {
		return
	}
	for _, k := range result.Connections {
		if k.Broken != "" && !c.rewound {
			t.Errorf("VM %s: a connection broke: %+v", c.vm, k)
		}
	}
	for _, p := range result.Probes {
		t.Logf("from %s to %s: %d probes, %d lost, %d duplicated, longest gap %s; the VM could not answer for %s", c.from.Name, p.Peer, p.Counts.Sent, p.Counts.Lost,
			p.Counts.Duplicated, p.Gap.Length().Round(time.Millisecond), stall.Round(time.Millisecond))
		if limit := stall + patience(promptly); p.Gap.Length() > limit && c.run == nil {
			t.Errorf("nothing came from %s for %s, want at most %s", p.Peer, p.Gap.Length(), limit)
		}
	}
	control := netip.AddrPortFrom(c.vm.ips[0], traffic.ControlPort)
	arrivals, err := traffic.NewClient(podPlace(t, c.from), control).Arrivals(ctx, result.Run)
	if err != nil {
		t.Fatal(err)
	}
	if n := arrivals.Duplicated(); n > 0 {
		t.Errorf("VM %s got %d probes twice", c.vm, n)
	}
}
