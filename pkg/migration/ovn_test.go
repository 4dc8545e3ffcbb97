package migration

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

// fakeOVN plays the northbound rows of one VM, northd, and the activation that ovn-controller reports. It holds every write against the invariants.
type fakeOVN struct {
	rows    map[string]*nbdb.LogicalSwitchPort
	sb      map[string]*sbdb.PortBinding // by network
	chassis map[ident.ChassisName]bool
	writes  int
	// baseline is whose pairs are right: their activation strategy differs.
	baseline Baseline
}

func newFakeOVN(chassis ...ident.ChassisName) *fakeOVN {
	o := &fakeOVN{rows: map[string]*nbdb.LogicalSwitchPort{}, sb: map[string]*sbdb.PortBinding{}, chassis: map[ident.ChassisName]bool{}}
	for _, c := range chassis {
		o.chassis[c] = true
	}
	return o
}

// port adds a VM's row, as the controller does when it sees the VM first.
func (o *fakeOVN) port(network string) {
	o.rows[network] = &nbdb.LogicalSwitchPort{Name: "vm/" + network, Options: map[string]string{"iface-id-ver": "kept"},
		ExternalIDs: map[string]string{ident.OwnerKey: "vm"}}
}

func (o *fakeOVN) bindings() []*sbdb.PortBinding {
	return slices.Collect(maps.Values(o.sb))
}

// apply writes what a decision wants in one transaction, having checked it.
func (o *fakeOVN) apply(d Decision) error {
	if err := o.check(d); err != nil {
		return fmt.Errorf("%s/%s: %w", d.Phase, d.Reason, err)
	}
	if !changed(d) {
		return nil
	}
	o.writes++
	for _, p := range d.Ports {
		row := o.rows[p.Network]
		set(row.Options, ident.OptionRequestedChassis, p.Want.Requested)
		set(row.Options, ident.OptionActivationStrategy, string(p.Want.Strategy))
		set(row.ExternalIDs, ident.KeyMigration, p.Want.Stamp.Migration)
		set(row.ExternalIDs, ident.KeyMigrationSource, string(p.Want.Stamp.Source))
		set(row.ExternalIDs, ident.KeyMigrationTarget, string(p.Want.Stamp.Target))
	}
	return nil
}

func set(m map[string]string, key, value string) {
	if value == "" {
		delete(m, key)
		return
	}
	m[key] = value
}

// check holds a decision against the invariants of every write.
func (o *fakeOVN) check(d Decision) error {
	main := map[string]string{}
	for _, p := range d.Ports {
		if got := o.rows[p.Network].Options[ident.OptionRequestedChassis]; got != p.Observed.Requested {
			return fmt.Errorf("port %s: observed %q, the row says %q", p.Network, p.Observed.Requested, got)
		}
		if d.Phase == Unclear && !slices.Contains(strings.Split(p.Observed.Requested, ","), "") && p.Changed() {
			return fmt.Errorf("port %s: changed though unclear: %+v to %+v", p.Network, p.Observed, p.Want)
		}
		if err := o.checkPort(p); err != nil {
			return fmt.Errorf("port %s: requested-chassis %q to %q: %w", p.Network, p.Observed.Requested, p.Want.Requested, err)
		}
		if m, _, two := strings.Cut(p.Want.Requested, ","); two {
			main[m] = p.Network
		}
	}
	if len(main) > 1 && changed(d) {
		return fmt.Errorf("two mains: %v", main)
	}
	return nil
}

func (o *fakeOVN) checkPort(p PortDecision) error {
	names := strings.Split(p.Want.Requested, ",")
	switch {
	case slices.Contains(names, ""):
		return fmt.Errorf("an empty chassis")
	case p.Want == p.Observed:
		return nil
	case len(names) > 2 || len(names) == 2 && names[0] == names[1]:
		return fmt.Errorf("want one chassis, or two")
	case len(names) == 2 && p.Want.Strategy != o.baseline.strategy() || len(names) == 1 && p.Want.Strategy != "":
		return fmt.Errorf("activation-strategy is %q", p.Want.Strategy)
	case len(names) == 1 || p.Want.Requested == p.Observed.Requested:
		return nil
	case isPair(p.Observed.Requested):
		return fmt.Errorf("from one pair to another")
	}
	for _, n := range names {
		if !o.chassis[ident.ChassisName(n)] {
			return fmt.Errorf("%s is no chassis: the other one would be main at once", n)
		}
	}
	if b := o.sb[p.Network]; b != nil && (b.Options[ident.BindingActivated] != "" || len(b.RequestedAdditionalChassis) > 0) {
		return fmt.Errorf("the target would not be blocked: southbound still says %v %v", b.RequestedAdditionalChassis, b.Options)
	}
	return nil
}

// northd is one round of ovn-northd: it takes the rows over, and like 23.03 it drops an activation only in the round after the one in which
// the second chassis went.
func (o *fakeOVN) northd() {
	for network, row := range o.rows {
		b := o.sb[network]
		if b == nil {
			b = &sbdb.PortBinding{LogicalPort: row.Name, Options: map[string]string{}}
			o.sb[network] = b
		}
		if len(b.RequestedAdditionalChassis) == 0 {
			delete(b.Options, ident.BindingActivated)
		}
		b.RequestedAdditionalChassis = nil
		activated := b.Options[ident.BindingActivated]
		b.Options, b.ExternalIDs = maps.Clone(row.Options), maps.Clone(row.ExternalIDs)
		set(b.Options, ident.BindingActivated, activated)
		for i, name := range strings.Split(row.Options[ident.OptionRequestedChassis], ",") {
			if i > 0 && o.chassis[ident.ChassisName(name)] {
				b.RequestedAdditionalChassis = append(b.RequestedAdditionalChassis, "uuid-of-"+name)
			}
		}
	}
}

// activate is what ovn-controller on an additional chassis does when a RARP enters the port there.
func (o *fakeOVN) activate(c ident.ChassisName) {
	for _, b := range o.sb {
		if !slices.Contains(b.RequestedAdditionalChassis, "uuid-of-"+string(c)) {
			continue
		}
		have := b.Options[ident.BindingActivated]
		if slices.Contains(strings.Split(have, ","), string(c)) {
			continue
		}
		b.Options[ident.BindingActivated] = strings.TrimPrefix(have+","+string(c), ",")
	}
}

// asks says whether every row that a launcher needs names a chassis.
func (o *fakeOVN) asks(c ident.ChassisName, networks []string) bool {
	for network, row := range o.rows {
		if networks != nil && !slices.Contains(networks, network) {
			continue
		}
		if !slices.Contains(strings.Split(row.Options[ident.OptionRequestedChassis], ","), string(c)) {
			return false
		}
	}
	return true
}

// describe is a decision as the scenario files show it.
func describe(d Decision) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s): %s\n", d.Phase, d.Reason, d.Message)
	for _, p := range d.Ports {
		if p.Changed() {
			fmt.Fprintf(&b, "  write %s: %s -> %s\n", p.Network, describeState(p.Observed), describeState(p.Want))
		}
	}
	for _, a := range d.Attach {
		fmt.Fprintf(&b, "  attach %s on %s", a.Pod, a.Chassis)
		if a.Migration != "" {
			fmt.Fprintf(&b, " for %s", a.Migration)
		}
		b.WriteString("\n")
	}
	if d.RequeueAfter != 0 {
		fmt.Fprintf(&b, "  again in %v\n", d.RequeueAfter)
	}
	return b.String()
}

func describeState(s PortState) string {
	out := s.Requested
	if out == "" {
		out = "(absent)"
	}
	if s.Strategy != "" {
		out += " " + string(s.Strategy)
	}
	if s.Stamp != (Stamp{}) {
		out += fmt.Sprintf(" [%s %s>%s]", s.Stamp.Migration, s.Stamp.Source, s.Stamp.Target)
	}
	return out
}

// changed says whether a decision asks for anything to be written.
func changed(d Decision) bool { return slices.ContainsFunc(d.Ports, PortDecision.Changed) }
