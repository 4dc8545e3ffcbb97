package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// recovered sees the network recover promptly, and its record be complete.
func (c *cell) recovered(t *testing.T, since time.Time) {
	t.Helper()
	node := map[ending]string{moved: c.target, stayed: c.source}[c.ends]
	before := c.traffic.Status().Replied
	answers := func(context.Context) error {
		if now := c.traffic.Status().Replied; now < before+20 {
			return fmt.Errorf("VM %s does not answer: %d probes in %s", c.vm, now-before, time.Since(since).Round(time.Millisecond))
		}
		return nil
	}
	clean := func(ctx context.Context) error {
		vmi, err := c.vm.VMI(ctx)
		if err != nil {
			return err
		}
		if node != "" && vmi.Status.NodeName != node {
			return fmt.Errorf("VM %s is on %s, want %s", c.vm, vmi.Status.NodeName, node)
		}
		return c.tidy(ctx, vmi)
	}
	took := make(chan time.Duration, 1)
	failed := make(chan error, 1)
	go func() { // beside the other, so that neither waits for it
		d, err := within(t.Context(), since, c.patience(), answers)
		failed <- err
		took <- d
	}()
	tidied, err := within(t.Context(), since, patience(promptly)+c.grace, clean)
	if err := errors.Join(err, <-failed); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s from %s to %s: after KubeVirt's recovery the VM answered in %d ms, its row was clean in %d ms", c, c.source, c.target, (<-took).Milliseconds(),
		tidied.Milliseconds())
	c.recorded(t)
	c.walked(t)
}

// patience is for the VM's answer: one that was started again has to boot.
func (c *cell) patience() time.Duration {
	if c.ends == died {
		return patience(promptly + 15*time.Second)
	}
	return patience(promptly) + c.silent
}

// within tries until check succeeds, at most until d after since, and returns how long after since that was.
func within(ctx context.Context, since time.Time, d time.Duration, check func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
	defer cancel()
	for {
		err := check(ctx)
		took := time.Since(since)
		if err == nil {
			return took, nil
		}
		if took > d {
			return took, fmt.Errorf("%s after KubeVirt's recovery: %w", took.Round(time.Millisecond), err)
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
	stamp := row.ExternalIDs[ident.KeyMigration]
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
	both := s + "," + d
	// The last: the VM had arrived in post-copy and was lost there. The source's launcher is the only one for a moment, until its VMI has failed.
	for _, began := range [][]string{{s}, {s, both}, {s, both, s}, {s, both, d}, {s, both, d, s}} {
		ways = append(ways, append(slices.Clone(began), "godwit-none", n))
	}
	return ways
}

// wentBy fails the test unless the row went one of the ways, and the main chassis were mains; nil for any that are on the way.
func (c *cell) wentBy(t *testing.T, ways [][]string, mains []string) {
	t.Helper()
	eventually(t, 10*time.Second, func(context.Context) error {
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
