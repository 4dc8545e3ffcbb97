package netdev

import (
	"context"
	"fmt"

	"sigs.k8s.io/knftables"
)

// dropInvalidPriority is after connection tracking (-200) and before destination NAT (-100).
const dropInvalidPriority = "-150"

// DropInvalid makes the network namespace at netns, a pod's, drop what comes in at a link and fits into no connection that it knows (conntrack's state "invalid").
// NAT leaves such packets alone: they would be the namespace's own, whose TCP ends the connection by a reset.
func DropInvalid(ctx context.Context, netns, link string) error {
	return InNetns(netns, func() error {
		nft, err := knftables.New(knftables.InetFamily, nftTable)
		if err != nil {
			return fmt.Errorf("open nftables: %w: is the nft program installed and the nf_tables module loaded?", err)
		}
		return dropInvalid(ctx, nft, link)
	})
}

// dropInvalid is DropInvalid on any nftables, also knftables.Fake.
func dropInvalid(ctx context.Context, nft knftables.Interface, link string) error {
	const chain, set = "prerouting", "links"
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Set{Name: set, Type: "ifname"})
	tx.Add(&knftables.Element{Set: set, Key: []string{`"` + link + `"`}})
	tx.Add(&knftables.Chain{
		Name: chain, Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.PreroutingHook),
		Priority: knftables.PtrTo(knftables.BaseChainPriority(dropInvalidPriority)),
	})
	tx.Flush(&knftables.Chain{Name: chain})
	tx.Add(&knftables.Rule{Chain: chain, Rule: knftables.Concat("iifname", "@", set, "ct state invalid drop")})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table inet %s: %w", nftTable, err)
	}
	return nil
}
