package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// state is what a VM must keep: its addresses and its port; and how the port must be when no migration is under way.
type state struct {
	node      string
	addresses []netip.Addr
	// port is the LogicalSwitchPort's name; uuid is empty if there is none.
	port, uuid string
	options    map[string]string
}

func (s state) String() string {
	var addresses []string
	for _, a := range s.addresses {
		addresses = append(addresses, a.String())
	}
	return fmt.Sprintf("%s, LogicalSwitchPort %s (%s), requested-chassis=%s", strings.Join(addresses, ", "), s.port, s.uuid, s.options["requested-chassis"])
}

// changes says what a VM that has gone there and back has not kept.
func (s state) changes(now state) []error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	check(s.uuid != "" && now.uuid == s.uuid, "LogicalSwitchPort %s had UUID %q, has %q: want the same row all the time", now.port, s.uuid, now.uuid)
	check(len(s.addresses) > 0 && slices.Equal(s.addresses, now.addresses), "the VM had addresses %v, has %v: want the same", s.addresses, now.addresses)
	check(now.node == s.node, "the VM runs on %s: want it back on %s", now.node, s.node)
	check(now.options["requested-chassis"] == now.node, "LogicalSwitchPort %s has requested-chassis=%q: want %q, where the VM runs, and nothing else", now.port,
		now.options["requested-chassis"], now.node)
	strategy, left := now.options["activation-strategy"]
	check(!left, "LogicalSwitchPort %s still has activation-strategy=%s: want it removed after the migration", now.port, strategy)
	return all
}

// verdict is what a demo comes to.
type verdict struct {
	before, after state
	connections   []traffic.Connection
	passages      []*passage
}

// problems are all that is not as it must be.
func (v verdict) problems() []error {
	all := v.before.changes(v.after)
	if want := 2 * perDirection; len(v.connections) != want {
		all = append(all, fmt.Errorf("%d TCP connections were held: want %d", len(v.connections), want))
	}
	for _, c := range v.connections {
		switch {
		case c.Broken != "":
			all = append(all, fmt.Errorf("TCP connection %d (%s, to %s) broke after %s ms: %s: %s", c.Number, c.Kind, c.Peer, millis(c.Ended), c.Broken, c.Error))
		case !c.Opened:
			all = append(all, fmt.Errorf("TCP connection %d (%s, to %s) was never opened", c.Number, c.Kind, c.Peer))
		}
	}
	for _, p := range v.passages {
		for _, d := range p.directions() {
			if len(d.Arrivals) == 0 || d.Open {
				all = append(all, fmt.Errorf("migration from %s to %s: of the probes %s nothing arrived after it", p.source, p.target, d.Name))
			}
		}
	}
	return all
}
