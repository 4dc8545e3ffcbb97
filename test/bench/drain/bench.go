package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// runTimeout bounds all of it; the traffic lives as long at most.
	runTimeout = 20 * time.Minute
	// migrateTimeout bounds one migration, cleanupTimeout the clean-up, which waits for nothing.
	migrateTimeout, cleanupTimeout = 2 * time.Minute, 30 * time.Second
	// warmUp is for emulated processors to have translated what serves the traffic; between is from one single migration to the next.
	warmUp, between = 5 * time.Second, 2 * time.Second
	// settleTimeout is for rows and records after the last migration.
	settleTimeout = 10 * time.Second
	// lateLoss is how long after QEMU has let a VM run a loss may begin that is still the interruption's, as in bench-migration.
	lateLoss = 500 * time.Millisecond
)

// move is one migration of a VM. Times are in milliseconds.
type move struct {
	VM string `json:"vm"`
	To string `json:"to"`
	// Stop is QEMU's own, Unanswered how long probes were sent around it that were not answered, to an interval. Recorded is the PortMigration's, nil for none.
	Stop       float64  `json:"stop"`
	Unanswered float64  `json:"unanswered"`
	Recorded   *float64 `json:"recorded,omitempty"`

	uid     types.UID
	stopped lab.Stop
}

// run measures. The lab is as it was afterwards.
func (b *bench) run(ctx context.Context, want size) (err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, b.remove(ctx))
	}()
	if err := b.set(ctx, want); err != nil {
		return err
	}
	if err := pause(ctx, warmUp); err != nil {
		return err
	}
	end := b.begin(ctx)
	err = b.single(ctx, want.singles)
	if err == nil {
		err = b.drain(ctx)
	}
	if err = errors.Join(err, end()); err != nil {
		return err
	}
	return b.collect(ctx)
}

// single migrates the first VM there and back, while nobody else moves and all are talked to.
func (b *bench) single(ctx context.Context, n int) error {
	g := b.guests[0]
	for i := range n {
		to := b.drained
		if i%2 == 0 {
			to = b.others()[0]
		}
		m, err := b.migrate(ctx, g, to)
		if err != nil {
			return err
		}
		b.log.Info("migrated one VM", "to", to, "stop", m.Stop)
		b.singles = append(b.singles, m)
		if err := pause(ctx, between); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) migrate(ctx context.Context, g *guest, to string) (move, error) {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	m, err := g.Migrate(ctx, lab.MigrateOptions{To: to})
	if err != nil {
		return move{}, err
	}
	if _, err := m.AwaitSuccess(ctx); err != nil {
		return move{}, err
	}
	return b.seen(ctx, m)
}

// seen is what QEMU and Godwit have on record of a migration that succeeded.
func (b *bench) seen(ctx context.Context, m *lab.Migration) (move, error) {
	stop, err := m.QEMU(ctx)
	if err != nil {
		return move{}, err
	}
	got := move{VM: m.VM.Name, Stop: millis(stop.Duration()), uid: m.UID, stopped: stop}
	var list v1alpha1.PortMigrationList
	for deadline := time.Now().Add(settleTimeout); got.Recorded == nil && time.Now().Before(deadline); {
		if err := b.api.List(ctx, &list, client.InNamespace(b.namespace)); err != nil {
			return got, fmt.Errorf("list PortMigrations: %w", err)
		}
		for i := range list.Items {
			pm := &list.Items[i]
			if pm.Spec.Migration.UID != m.UID || pm.Status.Result == v1alpha1.MigrationFailed { // that of a target which was made anew, too
				continue
			}
			got.To = pm.Spec.Target.Node
			if s := pm.Status.Interruption; s != nil {
				if v, err := strconv.ParseFloat(s.Milliseconds, 64); err == nil {
					got.Recorded = &v
				}
			}
		}
		if err := pause(ctx, poll); err != nil {
			return got, err
		}
	}
	return got, nil
}

// drain is kubectl's, of the whole node: Godwit's controller goes too, if it is there.
func (b *bench) drain(ctx context.Context) error {
	b.log.Info("draining", "node", b.drained)
	start := time.Now()
	out, err := b.control(ctx, "drain", b.drained, "--ignore-daemonsets", "--delete-emptydir-data")
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, out)
	}
	b.took = time.Since(start)
	b.log.Info("drained", "took", b.took.Round(100*time.Millisecond))
	return nil
}

// control runs kubectl and returns all that it says.
func (b *bench) control(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, b.kubectl, append([]string{"--kubeconfig", b.lab.Kubeconfig()}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w", args[0], err)
	}
	return out.String(), nil
}

// collect ends the traffic and looks at what every VM has kept.
func (b *bench) collect(ctx context.Context) error {
	for i := range b.singles {
		if err := b.probes.measure(&b.singles[i]); err != nil {
			return err
		}
	}
	for _, g := range b.guests {
		if g.node == b.drained {
			if err := b.evacuated(ctx, g); err != nil {
				return err
			}
			if err := b.probes.measure(&g.evacuation); err != nil {
				return err
			}
		}
		held, err := g.held.Stop(ctx)
		if err != nil {
			return err
		}
		g.broken = broken(held)
		for _, c := range held.Connections {
			g.stalls = append(g.stalls, millis(c.Stall.Length()))
		}
		if g.lost, err = b.lost(ctx, g); err != nil {
			return err
		}
	}
	var err error
	b.differences, err = b.lab.Check(ctx)
	return err
}

// broken says of each connection that broke, or was never opened, why.
func broken(held *traffic.Result) (why []string) {
	for _, c := range held.Connections {
		if !c.Opened || c.Broken != "" {
			why = append(why, fmt.Sprintf("%s to %s: %s after %s: %s", c.Kind, c.Peer, cmp.Or(c.Broken, traffic.Refused), c.Ended.Round(time.Millisecond), c.Error))
		}
	}
	return why
}

// evacuated finds the VM's evacuation.
func (b *bench) evacuated(ctx context.Context, g *guest) error {
	list, err := g.Migrations(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		m := &list[i]
		if m.Annotations[kubevirtv1.EvacuationMigrationAnnotation] != "" && m.Status.Phase == kubevirtv1.MigrationSucceeded {
			g.evacuation, err = b.seen(ctx, &lab.Migration{VM: g.VM, Name: m.Name, UID: m.UID})
			b.spread[g.evacuation.To]++
			return err
		}
	}
	return fmt.Errorf("VM %s has no evacuation that succeeded: see godwit-lab kubectl -n %s get vmim", g, g.Namespace)
}

// lost says what the VM has not kept, when its row has had time to settle.
func (b *bench) lost(ctx context.Context, g *guest) (string, error) {
	for deadline := time.Now().Add(settleTimeout); ; {
		vmi, err := g.VMI(ctx)
		if err != nil {
			return "", err
		}
		row, addresses, options, err := b.port(ctx, g)
		if err != nil {
			return "", err
		}
		_, strategy := options[ident.OptionActivationStrategy]
		var lost string
		switch {
		case vmi.Status.NodeName == b.drained:
			lost = "it is on the drained node"
		case g.node != b.drained && vmi.Status.NodeName != g.node:
			lost = fmt.Sprintf("nobody drained %s, and it is on %s", g.node, vmi.Status.NodeName)
		case row != g.row || addresses != g.addresses:
			lost = fmt.Sprintf("its row was %s with %s, is %s with %s", g.row, g.addresses, row, addresses)
		case options[ident.OptionRequestedChassis] != vmi.Status.NodeName || strategy:
			lost = fmt.Sprintf("it runs on %s, its row has %v", vmi.Status.NodeName, options)
		}
		if lost == "" || time.Now().After(deadline) {
			return lost, nil
		}
		if err := pause(ctx, poll); err != nil {
			return lost, err
		}
	}
}

// measure finds the longest time around QEMU's stop over which probes were sent that were not answered.
func (m *move) measure(p *traffic.Probes) {
	m.Unanswered = 0
	var since time.Time
	for seq, at := range p.Arrived {
		sent := p.Start.Add(p.Sent[seq])
		switch {
		case at != traffic.Never:
			since = time.Time{}
			continue
		case since.IsZero():
			since = sent
		}
		if until := sent.Add(p.Interval); until.After(m.stopped.Stopped) && since.Before(m.stopped.Resumed.Add(lateLoss)) {
			m.Unanswered = max(m.Unanswered, millis(until.Sub(since)))
		}
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
