package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/timeline"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// lateGap is how long after QEMU has let the VM run again a silence still counts as the interruption's.
const lateGap = 500 * time.Millisecond

// passage is one migration of the VM, and what was seen of it.
type passage struct {
	source, target string
	// calm is when the quiet time began in which nothing was done, created when the migration was, ended when all was over.
	calm, created, ended time.Time
	stop                 lab.Stop
	// watched are the stages that this program saw, journal is what QEMU did, record is Godwit's.
	watched []timeline.Stage
	journal []kubevirt.Entry
	record  v1alpha1.PortMigration
	// to and from are probes.
	to, from seen
}

// pass migrates the VM under probes to the i-th of its addresses and from there, and waits until it is over. One address family at a time is probed, which is
// as much as the guest's emulated processor takes; the connections are of both.
func (s *scene) pass(ctx context.Context, target string, i int) (*passage, error) {
	vmi, err := s.vm.VMI(ctx)
	if err != nil {
		return nil, err
	}
	p := &passage{source: vmi.Status.NodeName, target: target}
	probes, err := newExchange(ctx, s.guest.only(i), s.peer.only(i), probing())
	if err != nil {
		return nil, err
	}
	c := &chronicle{}
	following := s.follow(ctx, c)
	if err := pause(ctx, warmUp); err != nil {
		return nil, err
	}
	p.calm = time.Now()
	if err := pause(ctx, quiet); err != nil {
		return nil, err
	}
	s.Log.Info("migrating the VM", "from", p.source, "to", target)
	p.created = c.begin()
	g, err := s.vm.Migrate(ctx, lab.MigrateOptions{To: target})
	if err != nil {
		return nil, err
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		return nil, err
	}
	if err := pause(ctx, aftermath); err != nil {
		return nil, err
	}
	p.ended = time.Now()
	if p.watched, err = following(); err != nil {
		return nil, err
	}
	if p.to, p.from, err = probes.stop(ctx); err != nil {
		return nil, err
	}
	return p, s.read(ctx, g, p)
}

// read collects what others have noted of a migration.
func (s *scene) read(ctx context.Context, g *lab.Migration, p *passage) (err error) {
	if p.stop, err = g.QEMU(ctx); err != nil {
		return err
	}
	entries, err := s.vm.Journal()
	if err != nil {
		return err
	}
	p.journal = slices.DeleteFunc(entries, func(e kubevirt.Entry) bool { return e.Time.Before(p.created) || e.Time.After(p.ended) })
	deadline := time.Now().Add(settleTimeout)
	for {
		found, err := s.findRecord(ctx, g, p)
		if err != nil {
			return err
		}
		st := &p.record.Status
		switch {
		case found && st.Result == v1alpha1.MigrationSucceeded && st.Source != nil && st.Target != nil && st.Interruption != nil:
			return nil
		case found && time.Now().After(deadline):
			return nil // what is missing is not shown
		case time.Now().After(deadline):
			return fmt.Errorf("migration %s has no PortMigration: see godwit-lab logs of the controller: godwit-lab kubectl -n %s logs -l app.kubernetes.io/component=controller",
				g, lab.Namespace)
		}
		if err := pause(ctx, poll); err != nil {
			return fmt.Errorf("wait for the record of migration %s: %w", g, err)
		}
	}
}

func (s *scene) findRecord(ctx context.Context, g *lab.Migration, p *passage) (bool, error) {
	var list v1alpha1.PortMigrationList
	if err := s.api.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return false, fmt.Errorf("list PortMigrations: %w", err)
	}
	i := slices.IndexFunc(list.Items, func(pm v1alpha1.PortMigration) bool { return pm.Spec.Migration.UID == g.UID })
	if i < 0 {
		return false, nil
	}
	p.record = list.Items[i]
	return true, nil
}

// timeline puts together what was seen.
func (p *passage) timeline(s *scene, c connections) *timeline.Migration {
	var addresses []string
	for _, a := range s.guest.ips {
		addresses = append(addresses, a.String())
	}
	return &timeline.Migration{
		VM: vmName, Address: strings.Join(addresses, ", "), Source: p.source, Target: p.target, Zero: p.created,
		Stages: p.stages(), Stopped: p.stop.Stopped, Resumed: p.stop.Resumed,
		Directions: p.directions(), Throughput: c.throughput(), Connections: c.counted(),
	}
}

// directions are the probes there and back by the peer's clock, and those from the VM by the peer's arrivals, in each address family. The worst of each
// direction come first: these are drawn.
func (p *passage) directions() []timeline.Direction {
	var to, from []timeline.Direction
	for i := range p.to.result.Probes {
		r := &p.to.result.Probes[i]
		d := p.direction("to VM and back", r)
		// The VM answers what it gets twice twice, unless one of the answers is lost.
		for j := range p.to.arrivals.Flows {
			if f := &p.to.arrivals.Flows[j]; f.Flow == r.Flow {
				d.Duplicated = max(d.Duplicated, f.Duplicated())
			}
		}
		to = append(to, d)
	}
	for i := range p.from.result.Probes {
		oneWay := traffic.OneWay(&p.from.result.Probes[i], p.from.arrivals)
		from = append(from, p.direction("from VM", &oneWay))
	}
	worst := func(a, b timeline.Direction) int { return int(b.Silence() - a.Silence()) }
	slices.SortStableFunc(to, worst)
	slices.SortStableFunc(from, worst)
	var all []timeline.Direction
	for i := range max(len(to), len(from)) {
		all = append(append(all, to[min(i, len(to)):min(i+1, len(to))]...), from[min(i, len(from)):min(i+1, len(from))]...)
	}
	return all
}

// direction is the interruption in one direction: the longest silence from QEMU's stop on until a little after. What is longer elsewhere in the migration, and
// what there was while nothing was done, is beside it.
func (p *passage) direction(name string, r *traffic.Probes) timeline.Direction {
	family := "IPv6"
	if r.Peer.Is4() {
		family = "IPv4"
	}
	d := timeline.Probed(name+", "+family, r)
	gap := r.Within(p.stop.Stopped, p.stop.Resumed.Add(lateGap))
	d.From, d.To, d.Open, d.Paused = r.Start.Add(gap.From), r.Start.Add(gap.To), gap.Open, gap.Paused
	d.Quiet = r.Within(p.calm, p.created).Length()
	d.Elsewhere = r.Within(p.created, p.ended).Length()
	return d
}

// recorded is what Godwit's own record says of the interruption.
func (p *passage) recorded() string {
	i := p.record.Status.Interruption
	if i == nil {
		return fmt.Sprintf("PortMigration %s says nothing of the interruption.\n", p.record.Name)
	}
	says := fmt.Sprintf("PortMigration %s: the network heard nothing of the VM for %s ms", p.record.Name, i.Milliseconds)
	if i.UncertaintyMilliseconds != "" {
		says += ", give or take " + i.UncertaintyMilliseconds + " ms"
	}
	if o := p.record.Status.Target; o != nil && o.FirstFrame != nil {
		if after := o.FirstFrame.Sub(p.stop.Resumed); after >= 0 {
			says += fmt.Sprintf(".\nThe guest sent its first frame on %s %s ms after QEMU had let it run", p.target, millis(after))
		} else {
			says += fmt.Sprintf(".\nThe frame that the agent on %s took for the guest's first was there %s ms before QEMU let it run: somebody else sent it", p.target, millis(-after))
		}
	}
	return says + ".\n"
}
