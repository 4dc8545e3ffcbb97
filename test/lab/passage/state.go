package passage

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// State is what a VM must keep: its addresses and its port; and how the port must be when no migration is under way.
type State struct {
	Node      string
	Addresses []netip.Addr
	// Port is the LogicalSwitchPort's name; UUID is empty if there is none.
	Port, UUID string
	Options    map[string]string
}

// String is for people.
func (s State) String() string {
	var addresses []string
	for _, a := range s.Addresses {
		addresses = append(addresses, a.String())
	}
	return fmt.Sprintf("%s, LogicalSwitchPort %s (%s), requested-chassis=%s", strings.Join(addresses, ", "), s.Port, s.UUID, s.Options[ident.OptionRequestedChassis])
}

// Changes says what a VM that has gone there and back has not kept.
func (s State) Changes(now State) []error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	check(s.UUID != "" && now.UUID == s.UUID, "LogicalSwitchPort %s had UUID %q, has %q: want the same row all the time", now.Port, s.UUID, now.UUID)
	check(len(s.Addresses) > 0 && slices.Equal(s.Addresses, now.Addresses), "the VM had addresses %v, has %v: want the same", s.Addresses, now.Addresses)
	check(now.Node == s.Node, "the VM runs on %s: want it back on %s", now.Node, s.Node)
	check(now.Options[ident.OptionRequestedChassis] == now.Node, "LogicalSwitchPort %s has requested-chassis=%q: want %q, where the VM runs, and nothing else", now.Port,
		now.Options[ident.OptionRequestedChassis], now.Node)
	strategy, left := now.Options[ident.OptionActivationStrategy]
	check(!left, "LogicalSwitchPort %s still has activation-strategy=%s: want it removed after the migration", now.Port, strategy)
	return all
}
