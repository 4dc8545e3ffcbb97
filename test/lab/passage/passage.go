// Package passage moves a VM from node to node under traffic, in a lab, and puts together what everybody saw of it: the probes, QEMU, KubeVirt, Godwit's record. The
// demo shows two passages, make bench-migration measures many.
package passage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/timeline"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// lateGap is how long after QEMU has let the VM run again a silence still counts as the interruption's.
const lateGap = 500 * time.Millisecond

// Passage is one migration of the VM, and what was seen of it.
type Passage struct {
	Source, Target string
	// Calm is when the quiet time began in which nothing was done, Created when the migration was, Ended when all was over.
	Calm, Created, Ended time.Time
	Stop                 lab.Stop
	// Watched are the stages that this program saw, Journal is what QEMU did, Record is Godwit's.
	Watched []timeline.Stage
	Journal []kubevirt.Entry
	Record  v1alpha1.PortMigration
	// To and From are probes.
	To, From Seen
}

// Plan is what a passage is to be.
type Plan struct {
	Target string
	// Address is which of the VM's addresses is probed, and probes, counted round. One address family at a time is as much as the guest's emulated processor takes.
	Address int
	// WarmUp is for how long nothing is looked at after traffic has begun: an emulated processor translates that code first. Quiet is for how long the network is then
	// measured while nothing is done: what an interruption is to be compared with. Aftermath is for how long a migration that is over is still watched.
	WarmUp, Quiet, Aftermath time.Duration
	// Stop is for how long QEMU does not let the VM run, as a busy guest's migration takes; 0 for as long as it takes of itself.
	Stop time.Duration
	// Interval is between two probes; zero is traffic.Usual's, of which an emulated guest on a slow machine answers only some.
	Interval time.Duration
}

// Pass migrates the VM under probes, and waits until it is over.
func (s *Scene) Pass(ctx context.Context, plan Plan) (*Passage, error) {
	vmi, err := s.VM.VMI(ctx)
	if err != nil {
		return nil, err
	}
	p := &Passage{Source: vmi.Status.NodeName, Target: plan.Target}
	spec := probing()
	spec.Probe.Interval.Duration = cmp.Or(plan.Interval, spec.Probe.Interval.Duration)
	probes, err := newExchange(ctx, s.Guest.only(plan.Address), s.peer.only(plan.Address), spec)
	if err != nil {
		return nil, err
	}
	c := &chronicle{}
	following := s.follow(ctx, c)
	if err := pause(ctx, plan.WarmUp); err != nil {
		return nil, err
	}
	p.Calm = time.Now()
	if err := pause(ctx, plan.Quiet); err != nil {
		return nil, err
	}
	s.Log.Info("migrating the VM", "from", p.Source, "to", plan.Target)
	p.Created = c.begin()
	g, err := s.begin(ctx, plan, p)
	if err != nil {
		return nil, err
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		return nil, err
	}
	if err := pause(ctx, plan.Aftermath); err != nil {
		return nil, err
	}
	p.Ended = time.Now()
	if p.Watched, err = following(); err != nil {
		return nil, err
	}
	if p.To, p.From, err = probes.Stop(ctx); err != nil {
		return nil, err
	}
	return p, s.read(ctx, g, p)
}

// stopPoll is how often is looked whether QEMU has stopped a VM that is to stay so for a while.
const stopPoll = 5 * time.Millisecond

// begin makes the migration, and returns when QEMU may let the VM run.
func (s *Scene) begin(ctx context.Context, plan Plan, p *Passage) (*lab.Migration, error) {
	o := lab.MigrateOptions{To: plan.Target}
	if plan.Stop > 0 {
		o.Hold = []kubevirt.Stage{kubevirt.StageResume}
	}
	g, err := s.VM.Migrate(ctx, o)
	if err != nil || plan.Stop == 0 {
		return g, err
	}
	for {
		entries, err := s.VM.Journal()
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(entries, func(e kubevirt.Entry) bool {
			return e.Event == string(guest.Stopped) && e.Node == p.Source && e.Time.After(p.Created)
		})
		if i >= 0 {
			return g, errors.Join(pause(ctx, time.Until(entries[i].Time.Add(plan.Stop))), g.Release(ctx))
		}
		if err := pause(ctx, stopPoll); err != nil {
			return nil, fmt.Errorf("wait until QEMU has stopped VM %s: %w", s.VM, err)
		}
	}
}

// read collects what others have noted of a migration.
func (s *Scene) read(ctx context.Context, g *lab.Migration, p *Passage) (err error) {
	if p.Stop, err = g.QEMU(ctx); err != nil {
		return err
	}
	entries, err := s.VM.Journal()
	if err != nil {
		return err
	}
	p.Journal = slices.DeleteFunc(entries, func(e kubevirt.Entry) bool { return e.Time.Before(p.Created) || e.Time.After(p.Ended) })
	deadline := time.Now().Add(settleTimeout)
	for {
		found, err := s.findRecord(ctx, g, p)
		if err != nil {
			return err
		}
		st := &p.Record.Status
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

func (s *Scene) findRecord(ctx context.Context, g *lab.Migration, p *Passage) (bool, error) {
	var list v1alpha1.PortMigrationList
	if err := s.API.List(ctx, &list, client.InNamespace(s.Namespace)); err != nil {
		return false, fmt.Errorf("list PortMigrations: %w", err)
	}
	i := slices.IndexFunc(list.Items, func(pm v1alpha1.PortMigration) bool { return pm.Spec.Migration.UID == g.UID })
	if i < 0 {
		return false, nil
	}
	p.Record = list.Items[i]
	return true, nil
}

// Timeline puts together what was seen.
func (s *Scene) Timeline(p *Passage) *timeline.Migration {
	var addresses []string
	for _, a := range s.Guest.IPs {
		addresses = append(addresses, a.String())
	}
	return &timeline.Migration{
		VM: vmName, Address: strings.Join(addresses, ", "), Source: p.Source, Target: p.Target, Zero: p.Created,
		Stages: p.Stages(), Stopped: p.Stop.Stopped, Resumed: p.Stop.Resumed, Directions: p.Directions(),
	}
}

// ToVM are the probes to the VM and their answers, in each address family.
func (p *Passage) ToVM() []timeline.Direction {
	var to []timeline.Direction
	for i := range p.To.Result.Probes {
		r := &p.To.Result.Probes[i]
		d := p.direction("to VM and back", r)
		// The VM answers what it gets twice twice, unless one of the answers is lost.
		for j := range p.To.Arrivals.Flows {
			if f := &p.To.Arrivals.Flows[j]; f.Flow == r.Flow {
				d.Duplicated = max(d.Duplicated, f.Duplicated())
			}
		}
		to = append(to, d)
	}
	return to
}

// FromVM are the VM's own probes by the peer's arrivals, in each address family.
func (p *Passage) FromVM() []timeline.Direction {
	var from []timeline.Direction
	for i := range p.From.Result.Probes {
		oneWay := traffic.OneWay(&p.From.Result.Probes[i], p.From.Arrivals)
		from = append(from, p.direction("from VM", &oneWay))
	}
	return from
}

// Directions are both, the worst of each first: these are drawn.
func (p *Passage) Directions() []timeline.Direction {
	to, from := p.ToVM(), p.FromVM()
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
func (p *Passage) direction(name string, r *traffic.Probes) timeline.Direction {
	family := "IPv6"
	if r.Peer.Is4() {
		family = "IPv4"
	}
	d := timeline.Probed(name+", "+family, r)
	gap := r.Within(p.Stop.Stopped, p.Stop.Resumed.Add(lateGap))
	d.From, d.To, d.Open, d.Paused = r.Start.Add(gap.From), r.Start.Add(gap.To), gap.Open, gap.Paused
	d.Quiet = r.Within(p.Calm, p.Created).Length()
	d.Elsewhere = r.Within(p.Created, p.Ended).Length()
	return d
}

// Recorded is what Godwit's own record says of the interruption.
func (p *Passage) Recorded() string {
	i := p.Record.Status.Interruption
	if i == nil {
		return fmt.Sprintf("PortMigration %s says nothing of the interruption.\n", p.Record.Name)
	}
	says := fmt.Sprintf("PortMigration %s: the network heard nothing of the VM for %s ms", p.Record.Name, i.Milliseconds)
	if i.UncertaintyMilliseconds != "" {
		says += ", give or take " + i.UncertaintyMilliseconds + " ms"
	}
	if o := p.Record.Status.Target; o != nil && o.FirstFrame != nil {
		if after := o.FirstFrame.Sub(p.Stop.Resumed); after >= 0 {
			says += fmt.Sprintf(".\nThe guest sent its first frame on %s %s ms after QEMU had let it run", p.Target, Millis(after))
		} else {
			says += fmt.Sprintf(".\nThe frame that the agent on %s took for the guest's first was there %s ms before QEMU let it run: somebody else sent it", p.Target, Millis(-after))
		}
	}
	return says + ".\n"
}

// Millis is a time in milliseconds, to a tenth.
func Millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Round(100*time.Microsecond))/float64(time.Millisecond), 'f', 1, 64)
}
