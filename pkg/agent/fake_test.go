package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// fakeNode is a kernel and a switch in memory: hostNetwork and switchDB. Operations named in fail return that error, those in slow take so long.
type fakeNode struct {
	mu     sync.Mutex
	fail   map[string]error
	slow   map[string]time.Duration
	calls  []string
	links  map[string]netdev.Veth
	inside map[string]netdev.Interface
	ports  map[string]ovs.PortStatus
	zones  map[string]uint16
	addrs  []netdev.HostAddr
	routes []netdev.Route
	// blocked are ranges that somebody else has a route to.
	blocked []netdev.Blocked
	// chassis is what was written last.
	chassis ovs.Chassis
	// underlay is the bridge; the zero value: there is none.
	underlay ovs.Underlay
	// interfaces are Open vSwitch's.
	interfaces []string
	// borrowed are the egress addresses.
	borrowed []netdev.Borrowed
	// masquerade is what was asked for last.
	masquerade netdev.Masquerade
	// ended are translations of before and after, of which connections were ended.
	ended []string
	// bind is what OVN does with a new port; nil binds it.
	bind func(p *ovs.PortStatus)
	// open: OVN does not block ports.
	open bool
	// opened is what is told of a port's block; nil: nothing ever.
	opened chan time.Time
}

func newFakeNode() *fakeNode {
	return &fakeNode{
		fail: map[string]error{}, slow: map[string]time.Duration{}, links: map[string]netdev.Veth{}, inside: map[string]netdev.Interface{}, ports: map[string]ovs.PortStatus{},
	}
}

var (
	_ hostNetwork = (*fakeNode)(nil)
	_ switchDB    = (*fakeNode)(nil)
)

// op notes the call and runs f unless the test wants the operation to fail.
func (n *fakeNode) op(name string, f func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	time.Sleep(n.slow[name])
	n.calls = append(n.calls, name)
	if err := n.fail[name]; err != nil {
		return err
	}
	f()
	return nil
}

// left is what is on the node, for tests that want nothing to be.
func (n *fakeNode) left() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for name := range n.links {
		out = append(out, "link "+name)
	}
	for name := range n.ports {
		out = append(out, "port "+name)
	}
	slices.Sort(out)
	return out
}

func (n *fakeNode) Addrs() (out []netdev.HostAddr, err error) {
	return n.addrs, n.op("Addrs", func() {})
}
func (n *fakeNode) Watch(ctx context.Context, _ netdev.Events) error { <-ctx.Done(); return nil }
func (n *fakeNode) Chains() ([]netdev.Chain, error)                  { return nil, nil }
func (n *fakeNode) EnableForwarding([]netip.Prefix) error            { return n.op("EnableForwarding", func() {}) }
func (n *fakeNode) ConfigureGateway(netdev.Gateway) error            { return n.op("ConfigureGateway", func() {}) }
func (n *fakeNode) SyncRoutes(_ string, routes []netdev.Route) (blocked []netdev.Blocked, err error) {
	err = n.op("SyncRoutes", func() {
		n.routes = nil
		for _, r := range routes {
			if i := slices.IndexFunc(n.blocked, func(b netdev.Blocked) bool { return b.Dst == r.Dst }); i >= 0 {
				blocked = append(blocked, n.blocked[i])
				continue
			}
			n.routes = append(n.routes, r)
		}
	})
	return blocked, err
}
func (n *fakeNode) Masquerade(_ context.Context, m netdev.Masquerade) error {
	return n.op("Masquerade", func() { n.masquerade = m })
}
func (n *fakeNode) EndTranslated(m netdev.Masquerade, former []netdev.Translation) error {
	return n.op("EndTranslated", func() { n.ended = append(n.ended, fmt.Sprint(former, " ", m.Translations)) })
}
func (n *fakeNode) RemoveBalancer(context.Context) error {
	return n.op("RemoveBalancer", func() {})
}
func (n *fakeNode) Borrowed() (out []netdev.Borrowed, err error) {
	err = n.op("Borrowed", func() { out = slices.Clone(n.borrowed) })
	return out, err
}
func (n *fakeNode) SyncBorrowed(want []netdev.Borrowed, _ time.Duration) (l netdev.Loans, err error) {
	var own error
	err = n.op("SyncBorrowed", func() {
		for _, b := range want {
			if slices.ContainsFunc(n.addrs, func(a netdev.HostAddr) bool { return a.Addr.Addr() == b.Addr }) {
				own = netdev.ErrOwnAddress
				continue
			}
			if l.On = append(l.On, b); !slices.Contains(n.borrowed, b) {
				l.Added = append(l.Added, b)
			}
		}
		n.borrowed = slices.Clone(l.On)
	})
	return l, errors.Join(err, own)
}
func (n *fakeNode) Counters() (map[string]netdev.Counters, error) { return nil, nil }

func (n *fakeNode) SameNetns(string) (bool, error) { return false, n.op("SameNetns", func() {}) }

func (n *fakeNode) CreateVeth(v netdev.Veth) (net.HardwareAddr, error) {
	return net.HardwareAddr{2, 0, 0, 0, 0, 1}, n.op("CreateVeth", func() { n.links[v.Host] = v })
}

func (n *fakeNode) ConfigureContainer(path string, i netdev.Interface) error {
	return n.op("ConfigureContainer", func() { n.inside[path] = i })
}

func (n *fakeNode) CheckLauncher(_ string, _ netdev.Interface) (err error) {
	return n.op("CheckLauncher", func() {})
}

func (n *fakeNode) CheckContainer(_ string, _ netdev.Interface) (err error) {
	return n.op("CheckContainer", func() {})
}

func (n *fakeNode) DeleteLink(name string) error {
	return n.op("DeleteLink", func() { delete(n.links, name) })
}

// HostSides: a link's index is made of its container's, so that a new one of the name has another.
func (n *fakeNode) HostSides() (out []netdev.HostSide, err error) {
	err = n.op("HostSides", func() {
		for name, v := range n.links {
			out = append(out, netdev.HostSide{Name: name, Index: n.index(v), Alias: v.Alias})
		}
	})
	return out, err
}

func (n *fakeNode) index(v netdev.Veth) int { return 1000*len(v.Host) + v.MTU }

func (n *fakeNode) DeleteIndex(index int) error {
	return n.op("DeleteIndex", func() {
		for name, v := range n.links {
			if n.index(v) == index {
				delete(n.links, name)
			}
		}
	})
}

func (n *fakeNode) LinkMAC(name string) (mac net.HardwareAddr, found bool, err error) {
	err = n.op("LinkMAC", func() { _, found = n.links[name] })
	return net.HardwareAddr{2, 0, 0, 0, 0, 1}, found, err
}

func (n *fakeNode) Holdings(link string) (h netdev.Holdings, err error) {
	h.MTU = 9000 // a link keeps it without its addresses
	err = n.op("Holdings", func() {
		for _, a := range n.addrs {
			if a.Link == link {
				h.MTU, h.Addresses = a.MTU, append(h.Addresses, a.Addr)
			}
		}
	})
	return h, err
}

func (n *fakeNode) TakeOver(to, from string, held netdev.Holdings) error {
	return n.op("TakeOver", func() {
		n.addrs = slices.DeleteFunc(n.addrs, func(a netdev.HostAddr) bool { return a.Link == to || a.Link == from })
		for _, a := range held.Addresses {
			n.addrs = append(n.addrs, netdev.HostAddr{Link: to, Addr: a, MTU: held.MTU})
		}
	})
}

func (n *fakeNode) HasInterface(_ context.Context, name string) (has bool, err error) {
	err = n.op("HasInterface", func() { has = slices.Contains(n.interfaces, name) })
	return has, err
}

func (n *fakeNode) Underlay(context.Context, string) (u ovs.Underlay, found bool, err error) {
	err = n.op("Underlay", func() { u, found = n.underlay, n.underlay.Bridge != "" })
	return u, found, err
}

func (n *fakeNode) CreateUnderlay(_ context.Context, u ovs.Underlay) error {
	return n.op("CreateUnderlay", func() { n.underlay = u })
}

func (n *fakeNode) AddUnderlay(_ context.Context, u ovs.Underlay) error {
	return n.op("AddUnderlay", func() { n.underlay = u })
}

func (n *fakeNode) Ping(context.Context) error { return n.op("Ping", func() {}) }
func (n *fakeNode) SupportsDatapath(context.Context, string) error {
	return n.op("SupportsDatapath", func() {})
}
func (n *fakeNode) EnsureBridge(context.Context, string) error {
	return n.op("EnsureBridge", func() {})
}
func (n *fakeNode) TrackLoosely(context.Context) error { return n.op("TrackLoosely", func() {}) }
func (n *fakeNode) AvoidZeroSNAT(context.Context) (bool, error) {
	return false, n.op("AvoidZeroSNAT", func() {})
}
func (n *fakeNode) EnsureChassis(_ context.Context, ch ovs.Chassis) ([]string, error) {
	return nil, n.op("EnsureChassis", func() { n.chassis = ch })
}

func (n *fakeNode) EncapIP(context.Context) (ip netip.Addr, err error) {
	err = n.op("EncapIP", func() { ip, _ = netip.ParseAddr(n.chassis.EncapIP) })
	return ip, err
}

func (n *fakeNode) EnsurePort(_ context.Context, p ovs.Port) error {
	return n.op("EnsurePort", func() {
		s := ovs.PortStatus{Port: p, Ofport: 1, Installed: true}
		if n.bind != nil {
			n.bind(&s)
		}
		n.ports[p.Name] = s
	})
}

func (n *fakeNode) DeletePorts(_ context.Context, names ...string) error {
	return n.op("DeletePorts", func() {
		for _, name := range names {
			delete(n.ports, name)
		}
	})
}

func (n *fakeNode) Withdraw(_ context.Context, name string) error {
	return n.op("Withdraw", func() { n.withdraw(name, true) })
}

func (n *fakeNode) Restore(_ context.Context, name string) error {
	return n.op("Restore", func() { n.withdraw(name, false) })
}

func (n *fakeNode) withdraw(name string, yes bool) {
	p := n.ports[name]
	p.Withdrawn = yes
	n.ports[name] = p
}

func (n *fakeNode) Port(_ context.Context, name string) (s ovs.PortStatus, err error) {
	found := false
	if err := n.op("Port", func() { s, found = n.ports[name] }); err != nil {
		return s, err
	}
	if !found {
		return s, fmt.Errorf("%w: %s", ovs.ErrNoPort, name)
	}
	return s, nil
}

func (n *fakeNode) Tunnels(context.Context) (all, failed int, err error) { return 2, 0, nil }

func (n *fakeNode) Zones(context.Context) (out map[string]uint16, err error) {
	err = n.op("Zones", func() { out = maps.Clone(n.zones) })
	return out, err
}

func (n *fakeNode) PodPorts(context.Context) (out []ovs.PortStatus, err error) {
	err = n.op("PodPorts", func() {
		for _, s := range n.ports {
			if s.Owner.Container != "" {
				out = append(out, s)
			}
		}
	})
	return out, err
}

func (n *fakeNode) WaitInstalled(ctx context.Context, name string) error {
	var s ovs.PortStatus
	if err := n.op("WaitInstalled", func() { s = n.ports[name] }); err != nil {
		return err
	}
	if s.Installed {
		return nil
	}
	<-ctx.Done()
	return fmt.Errorf("interface %s: wait for external_ids:ovn-installed: %w", name, ctx.Err())
}

func (n *fakeNode) WaitBlocked(ctx context.Context, name string) error {
	blocked := false
	if err := n.op("WaitBlocked", func() { blocked = !n.open }); err != nil {
		return err
	}
	if blocked {
		return nil
	}
	<-ctx.Done()
	return fmt.Errorf("interface %s: wait for OVN's flow that blocks the port: %w", name, ctx.Err())
}

func (n *fakeNode) WatchOpened(ctx context.Context, _ string, tell func(time.Time)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case at := <-n.opened:
			tell(at)
		}
	}
}

func (*fakeNode) ForwardDrops(string) ([]string, error) { return nil, nil }
