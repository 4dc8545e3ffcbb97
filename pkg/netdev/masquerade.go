package netdev

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"
)

// tunnelPort is Geneve's (RFC 8926), where the nodes' tunnels end.
const tunnelPort = "6081"

// nftTable is the one nftables table that is Godwit's, in the inet family.
const nftTable = "godwit"

// Masquerade says whose packets leave the node under the node's own address.
type Masquerade struct {
	// Sources are the networks whose packets are masqueraded.
	Sources []netip.Prefix
	// Except are destinations that are reached without.
	Except []netip.Prefix
	// Gateway is the link towards the overlay: what leaves there keeps its source.
	Gateway string
	// Translations are networks whose packets leave under another address than the node's.
	Translations []Translation
}

// Translation is a network whose packets leave under an address of the same family.
type Translation struct {
	Source netip.Prefix
	To     netip.Addr
}

// Masquerade makes table inet godwit say so, in one transaction that replaces what the table said before. And it keeps from the nodes' tunnels what comes out of the overlay, and what
// the node translates, whatever it comes from: masqueraded, a pod's datagram would be one of its node's, and OVN would take the frame in it for any pod's; so would one that a node port
// leads to a tunnel's end.
func (h Host) Masquerade(ctx context.Context, m Masquerade) error {
	return h.do(func() error {
		nft, err := knftables.New(knftables.InetFamily, nftTable)
		if err != nil {
			return fmt.Errorf("open nftables: %w: is the nft program installed and the nf_tables module loaded?", err)
		}
		return applyMasquerade(ctx, nft, m)
	})
}

// applyMasquerade is Masquerade on any nftables, also knftables.Fake.
func applyMasquerade(ctx context.Context, nft knftables.Interface, m Masquerade) error {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Godwit: pods leave under the node's address")})
	tx.Add(&knftables.Chain{
		Name: "postrouting", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: "postrouting"})
	for hook, translated := range map[knftables.BaseChainHook]string{
		knftables.InputHook: "ct status and dnat != 0", knftables.ForwardHook: `oifname != "` + m.Gateway + `" ct status and dnat != 0`, // pods may have the port for themselves
	} {
		chain := string(hook)
		tx.Add(&knftables.Chain{
			Name: chain, Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(hook), Priority: knftables.PtrTo(knftables.FilterPriority),
		})
		tx.Flush(&knftables.Chain{Name: chain})
		tx.Add(&knftables.Rule{Chain: chain, Rule: knftables.Concat("iifname", `"`+m.Gateway+`"`, "udp dport", tunnelPort, "drop")})
		tx.Add(&knftables.Rule{Chain: chain, Rule: knftables.Concat(translated, "udp dport", tunnelPort, "drop")})
	}
	for _, f := range []struct {
		suffix, setType, match string
		member                 func(netip.Addr) bool
	}{{"4", "ipv4_addr", "ip", netip.Addr.Is4}, {"6", "ipv6_addr", "ip6", netip.Addr.Is6}} {
		addSet(tx, "pods"+f.suffix, f.setType, family(m.Sources, f.member))
		addSet(tx, "direct"+f.suffix, f.setType, family(slices.Concat(m.Sources, m.Except), f.member))
		for _, t := range m.Translations {
			if f.member(t.To) {
				tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(
					"oifname", "!=", `"`+m.Gateway+`"`, f.match, "saddr", t.Source, f.match, "daddr", "!=", "@", "direct"+f.suffix, "snat", f.match, "to", t.To,
				)})
			}
		}
		tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(
			"oifname", "!=", `"`+m.Gateway+`"`, f.match, "saddr", "@", "pods"+f.suffix, f.match, "daddr", "!=", "@", "direct"+f.suffix, "masquerade",
		)})
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table inet %s: %w", nftTable, err)
	}
	return nil
}

func addSet(tx *knftables.Transaction, name, setType string, nets []netip.Prefix) {
	tx.Add(&knftables.Set{Name: name, Type: setType, Flags: []knftables.SetFlag{knftables.IntervalFlag}, AutoMerge: knftables.PtrTo(true)})
	tx.Flush(&knftables.Set{Name: name})
	for _, n := range nets {
		tx.Add(&knftables.Element{Set: name, Key: []string{n.String()}})
	}
}

// family picks the prefixes of one family, masked, sorted and without duplicates: nft refuses an element that is added twice.
func family(nets []netip.Prefix, member func(netip.Addr) bool) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range nets {
		if member(n.Addr()) {
			out = append(out, n.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
