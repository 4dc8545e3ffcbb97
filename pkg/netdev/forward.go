package netdev

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ForwardDrops names the nftables chains ("ip filter FORWARD") that drop what the node forwards unless a rule accepts it, and that have no rules for the link in
// both directions: pods then reach nothing outside. Docker sets such a policy, and iptables in its nft form shows it here; the rules of the old x_tables do not.
func (h Host) ForwardDrops(link string) ([]string, error) {
	var drops []string
	err := h.do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		chains, err := conn.ListChains()
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, c := range chains {
			if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
				continue
			}
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return fmt.Errorf("list the rules of nftables chain %s: %w", c.Name, err)
			}
			if !namesLink(rules, expr.MetaKeyIIFNAME, link) || !namesLink(rules, expr.MetaKeyOIFNAME, link) {
				drops = append(drops, fmt.Sprintf("%s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name))
			}
		}
		return nil
	})
	return drops, err
}

// Chain is a chain of nftables, also one that iptables has made in its nft form.
type Chain struct{ Family, Table, Name string }

// String is FAMILY TABLE NAME, as nft has them.
func (c Chain) String() string { return c.Family + " " + c.Table + " " + c.Name }

// Chains lists those of all tables, in the kernel's order. The chains of the old x_tables are not among them.
func (h Host) Chains() (out []Chain, err error) {
	err = h.do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		chains, err := conn.ListChains()
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, c := range chains {
			out = append(out, Chain{Family: familyName(c.Table.Family), Table: c.Table.Name, Name: c.Name})
		}
		return nil
	})
	return out, err
}

// namesLink reports whether a rule compares the input or output interface, as key says, with link.
func namesLink(rules []*nftables.Rule, key expr.MetaKey, link string) bool {
	for _, r := range rules {
		loaded := false
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Meta:
				loaded = e.Key == key
			case *expr.Cmp:
				if loaded && bytes.Equal(bytes.TrimRight(e.Data, "\x00"), []byte(link)) {
					return true
				}
			}
		}
	}
	return false
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	}
	return "inet"
}
