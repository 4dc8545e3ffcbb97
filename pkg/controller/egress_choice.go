package controller

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"
)

// rank says how good a node is as a gateway.
type rank int

const (
	// rankSilent: its agent says nothing: it has failed, or nobody has started it.
	rankSilent rank = iota
	// rankPoor: it works, and Kubernetes says that it is not ready or not to be used.
	rankPoor
	rankGood
)

// candidate is a node that can be a gateway.
type candidate struct {
	node string
	rank rank
	// last and before are when its agent was heard of last, and the time before that.
	last, before time.Time
}

// choice is a gateway and why it is that.
type choice struct {
	// node is empty if there is none.
	node   string
	reason string
	// again: it is to be looked at again soon.
	again bool
}

// Reasons of the condition Egress.
const (
	reasonGateway       = "GatewayActive"
	reasonGatewaySilent = "GatewaySilent"
	reasonNoGateway     = "NoGateway"
	reasonNoAddress     = "AddressMissing"
	reasonEgressTaken   = "EgressAddressTaken"
	reasonEgressInvalid = "EgressAddressInvalid"
)

// reasonEgressClaimed is of an event alone.
const reasonEgressClaimed = "EgressAddressClaimed"

// chooseGateway says which node is the gateway of a Subnet; active is the one that was. It stays as long as no other is better: a node that comes back gets nothing back. When
// all are silent nobody knows which of them live, least of all a controller that hears nothing itself: then it stays too.
func chooseGateway(subnet, active string, all []candidate) choice {
	best := rankSilent
	for _, c := range all {
		best = max(best, c.rank)
	}
	i := slices.IndexFunc(all, func(c candidate) bool { return c.node == active })
	switch {
	case i >= 0 && all[i].rank == best && best > rankSilent:
		return choice{node: active, reason: reasonGateway}
	case i >= 0 && best == rankSilent:
		return choice{node: active, reason: reasonGatewaySilent}
	case best == rankSilent:
		return choice{reason: reasonNoGateway}
	}
	// Those that were heard of twice since the active one fell silent. A controller that could not hear anybody for a while hears one of them first.
	fit := slices.DeleteFunc(slices.Clone(all), func(c candidate) bool {
		return c.rank != best || i >= 0 && all[i].rank == rankSilent && !c.before.After(all[i].last)
	})
	if len(fit) == 0 {
		return choice{node: active, reason: reasonGatewaySilent, again: true}
	}
	next := slices.MaxFunc(fit, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(weight(subnet, a.node), weight(subnet, b.node)), cmp.Compare(a.node, b.node))
	})
	return choice{node: next.node, reason: reasonGateway}
}

// weight spreads Subnets over the nodes that they share (rendezvous hashing).
func weight(subnet, node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(subnet + "\x00" + node)) // it never fails
	return h.Sum64()
}
