package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

// announceTimes is how often an address that is new on the node is announced, once a beat: a frame may get lost.
const announceTimes = 3

// reannounce is after how long all addresses are announced again: the network may have learnt another place meanwhile, by the last frame of a node that had them.
const reannounce = 10 * time.Second

// An address is never asked for longer than the kernel's copy is known as Godwit's by.
const _ = uint(netdev.LongestLoan - v1alpha1.EgressRestart)

// loans are the egress addresses of Subnets whose gateway the node is. The kernel takes each away by itself when it is not renewed: a node that nobody hears has none left when
// another gets them.
//
// Outputs: addresses of links of the node; ARP announceTimes and neighbour advertisements.
type loans struct {
	log    *slog.Logger
	host   hostNetwork
	inputs *inputs
	// translated says whether packets leave under an address.
	translated func(netip.Addr) bool
	announce   func(b netdev.Borrowed) error
	now        func() time.Time

	// The rest belongs to the heart's loop.

	// lent: the node may have some.
	lent bool
	// news is how often an address is still to be announced.
	news map[netdev.Borrowed]int
	// announced is when all of them were announced.
	announced time.Time
	// told is the last error, which is logged once.
	told string
}

// keep makes want the egress addresses that the node has, for so long, and returns those that work.
func (l *loans) keep(want []netip.Addr, life time.Duration) []netip.Addr {
	held, err := l.sync(want, life)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != l.told && err != nil {
		l.log.Warn("not all egress addresses are on the node", "error", err)
	}
	l.told = text
	return held
}

func (l *loans) sync(want []netip.Addr, life time.Duration) ([]netip.Addr, error) {
	if len(want) == 0 && !l.lent {
		return nil, nil
	}
	borrowed, err := l.place(want)
	have, serr := l.host.SyncBorrowed(borrowed, life)
	err = errors.Join(err, serr)
	l.lent = len(borrowed) > 0 || serr != nil
	for _, b := range have.Added {
		l.log.Info("egress address is on the node", "address", b.Addr, "link", b.Link)
		l.news[b] = announceTimes
	}
	all := l.now().Sub(l.announced) >= reannounce
	if all {
		l.announced = l.now()
	}
	var held []netip.Addr
	for _, b := range have.On {
		if l.news[b] > 0 || all {
			l.news[b] = max(0, l.news[b]-1)
			err = errors.Join(err, l.announce(b))
		}
		if l.translated(b.Addr) {
			held = append(held, b.Addr)
		}
	}
	slices.SortFunc(held, netip.Addr.Compare)
	return held, err
}

// found are those of want that the node has already: another agent ran before this one.
func (l *loans) found(want []netip.Addr) []netip.Addr {
	have, err := l.host.Borrowed()
	if err != nil {
		l.log.Warn("which egress addresses the node has cannot be read", "error", err)
	}
	l.lent = len(have) > 0
	return slices.DeleteFunc(want, func(a netip.Addr) bool {
		return !slices.ContainsFunc(have, func(b netdev.Borrowed) bool { return b.Addr == a })
	})
}

// place finds a link for each address: the one on whose network it is, else the one with the Node's own address of the family, to which somebody routes it.
func (l *loans) place(want []netip.Addr) ([]netdev.Borrowed, error) {
	if len(want) == 0 {
		return nil, nil
	}
	addrs, err := l.host.Addrs()
	if err != nil {
		return nil, err
	}
	var internal []netip.Addr
	if node := l.inputs.node(); node != nil {
		internal = internalIPs(node)
	}
	addrs = slices.DeleteFunc(addrs, func(a netdev.HostAddr) bool { return a.Link == ident.GatewayInterface })
	var out []netdev.Borrowed
	for _, ip := range want {
		i := slices.IndexFunc(addrs, func(a netdev.HostAddr) bool { return a.Addr.Contains(ip) })
		if i < 0 {
			i = slices.IndexFunc(addrs, func(a netdev.HostAddr) bool {
				return a.Addr.Addr().Is4() == ip.Is4() && slices.Contains(internal, a.Addr.Addr())
			})
		}
		if i < 0 {
			err = errors.Join(err, fmt.Errorf("egress address %s: no link of the node is on its network, and the Node has no InternalIP of its family", ip))
			continue
		}
		out = append(out, netdev.Borrowed{Link: addrs[i].Link, Addr: ip})
	}
	return out, err
}

// announcer tells the neighbours on a link that an address is at the link's MAC.
func announcer(host netdev.Host) func(netdev.Borrowed) error {
	return func(b netdev.Borrowed) error {
		mac, found, err := host.LinkMAC(b.Link)
		if err == nil && !found {
			err = fmt.Errorf("link %s is gone", b.Link)
		}
		if err != nil {
			return fmt.Errorf("announce %s: %w", b.Addr, err)
		}
		return host.Do(func() error {
			link, err := net.InterfaceByName(b.Link)
			if err != nil {
				return fmt.Errorf("announce %s: find link %s: %w", b.Addr, b.Link, err)
			}
			return frame.Send(link.Index, frame.Announcement(mac, b.Addr))
		})
	}
}

// translations are under which addresses packets of Subnets leave whose gateway the node is.
func (in *inputs) translations(node string) []netdev.Translation {
	var out []netdev.Translation
	for _, s := range in.gateways() {
		if s.Status.EgressNode == node {
			out = append(out, translationsOf(s)...)
		}
	}
	slices.SortFunc(out, func(a, b netdev.Translation) int { return a.Source.Compare(b.Source) })
	return out
}

func translationsOf(s *v1alpha1.Subnet) []netdev.Translation {
	var out []netdev.Translation
	for _, text := range s.Spec.Egress.Addresses {
		to, err := netip.ParseAddr(text)
		if err != nil {
			continue // the CRD refuses it
		}
		for _, cidr := range sortedPrefixes(s.Spec.CIDRs) {
			if cidr.Addr().Is4() == to.Is4() {
				out = append(out, netdev.Translation{Source: cidr, To: to})
			}
		}
	}
	return out
}
