package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/netdev"
)

// userspaceNode has its InternalIP on eth0 and another link for tunnels.
func userspaceNode(cfg Config) (*fakeNode, *corev1.Node, *chassis) {
	n := newFakeNode()
	n.addrs = []netdev.HostAddr{
		{Link: "eth0", Addr: netip.MustParsePrefix("192.0.2.1/24"), MTU: 1500}, {Link: "eth1", Addr: netip.MustParsePrefix("198.51.100.1/24"), MTU: 9000},
		{Link: "eth1", Addr: netip.MustParsePrefix("fd00:1::1/64"), MTU: 9000},
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{}}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}},
	}}
	cfg.NodeName = "one"
	return n, node, &chassis{cfg: cfg, host: n, annotate: func(context.Context, string, string) error { return nil }}
}

func TestUnderlayGetsItsBridge(t *testing.T) {
	for _, underlay := range []string{"eth1", "198.51.100.0/24"} {
		n, node, c := userspaceNode(Config{Underlay: underlay, UnderlayBridge: "br-underlay"})
		for range 2 {
			got, _, err := c.reconcile(t.Context(), n, node, "netdev")
			if err != nil {
				t.Fatal(err)
			}
			if got.Link != "br-underlay" || got.IP != netip.MustParseAddr("198.51.100.1") || got.MTU != 8942 {
				t.Errorf("--underlay %s: tunnels end at %+v, want the bridge with eth1's address and MTU", underlay, got)
			}
		}
		if n.underlay.Link != "eth1" || len(n.underlay.Addresses) != 2 {
			t.Errorf("--underlay %s: the database remembers %+v, want eth1 and both addresses", underlay, n.underlay)
		}
	}
}

// A restarted ovs-vswitchd makes the bridge's link anew, without its addresses: the database has them.
func TestUnderlayGivesAddressesBack(t *testing.T) {
	n, node, c := userspaceNode(Config{Underlay: "eth1", UnderlayBridge: "br-underlay"})
	if _, _, err := c.reconcile(t.Context(), n, node, "netdev"); err != nil {
		t.Fatal(err)
	}
	n.addrs = n.addrs[:1]
	n.fail["TakeOver"] = netdev.ErrNoLink
	if _, _, err := c.reconcile(t.Context(), n, node, "netdev"); !errors.Is(err, errPending) {
		t.Fatalf("without the bridge's link: %v, want to wait for it", err)
	}
	delete(n.fail, "TakeOver")
	if got, _, err := c.reconcile(t.Context(), n, node, "netdev"); err != nil || got.Link != "br-underlay" {
		t.Errorf("%+v, %v", got, err)
	}
}

// An address that the link gets later replaces that of the same network, and those of others stay.
func TestUnderlayGetsAnotherAddress(t *testing.T) {
	n, node, c := userspaceNode(Config{Underlay: "198.51.100.0/24", UnderlayBridge: "br-underlay"})
	for _, later := range []string{"", "198.51.100.9/24", "203.0.113.7/24", "fd00:1::2/64", "198.51.100.9/24"} {
		if later != "" {
			n.addrs = append(n.addrs, netdev.HostAddr{Link: "eth1", Addr: netip.MustParsePrefix(later), MTU: 9000})
		}
		got, _, err := c.reconcile(t.Context(), n, node, "netdev")
		want := netip.MustParseAddr("198.51.100.1")
		if later != "" {
			want = netip.MustParseAddr("198.51.100.9")
		}
		if err != nil || got.IP != want {
			t.Errorf("with %q: tunnels end at %s (%v), want %s", later, got.IP, err, want)
		}
	}
	var have []string
	for _, a := range n.underlay.Addresses {
		have = append(have, a.String())
	}
	if got, want := strings.Join(have, " "), "fd00:1::1/64 198.51.100.9/24 203.0.113.7/24 fd00:1::2/64"; got != want {
		t.Errorf("the database remembers %s, want %s", got, want)
	}
}

// GODWIT_UNDERLAY names another link: ovs-vswitchd tunnels over none that is not in a bridge of its own.
func TestUnderlayIsAnotherLink(t *testing.T) {
	n, node, c := userspaceNode(Config{Underlay: "eth1", UnderlayBridge: "br-underlay"})
	if _, _, err := c.reconcile(t.Context(), n, node, "netdev"); err != nil {
		t.Fatal(err)
	}
	wrote := n.chassis
	for _, underlay := range []string{"eth2", "203.0.113.0/24", ""} {
		n.addrs = append(n.addrs, netdev.HostAddr{Link: "eth2", Addr: netip.MustParsePrefix("203.0.113.1/24"), MTU: 1500})
		c.cfg.Underlay = underlay
		_, _, err := c.reconcile(t.Context(), n, node, "netdev")
		if err == nil || !strings.Contains(err.Error(), "bridge br-underlay has the link eth1") || n.chassis != wrote {
			t.Errorf("--underlay %q: %v, and the chassis is %+v", underlay, err, n.chassis)
		}
	}
	n.interfaces, c.cfg.Underlay = []string{"eth2"}, "eth2"
	if _, _, err := c.reconcile(t.Context(), n, node, "netdev"); err != nil {
		t.Errorf("a link that Open vSwitch has: %v", err)
	}
	c.cfg.Underlay = "198.51.100.0/24"
	if got, _, err := c.reconcile(t.Context(), n, node, "netdev"); err != nil || got.Link != "br-underlay" {
		t.Errorf("set back: %+v, %v", got, err)
	}
}

func TestRenewedRoutes(t *testing.T) {
	const d, e = "203.0.113.0/24>198.51.100.", "0.0.0.0/0>198.51.100."
	for name, c := range map[string]struct{ had, got, want string }{
		"nothing new":                        {d + "1", "", d + "1"},
		"the same again":                     {d + "1", d + "1", d + "1"},
		"another gateway":                    {d + "1 " + e + "1", d + "2", e + "1 " + d + "2"},
		"another gateway, and the former":    {d + "1", d + "1 " + d + "2", d + "1 " + d + "2"},
		"another gateway of one metric":      {e + "1>100 " + e + "2>200", e + "3>200", e + "1>100 " + e + "3>200"},
		"the metric that was not remembered": {e + "1", e + "1>101", e + "1>101"},
	} {
		if got := strings.Join(renewedRoutes(strings.Fields(c.had), strings.Fields(c.got)), " "); got != c.want {
			t.Errorf("%s: %s and %s make %s, want %s", name, c.had, c.got, got, c.want)
		}
	}
}

func TestUnderlayIsLeftAlone(t *testing.T) {
	for name, c := range map[string]struct {
		cfg      Config
		datapath string
	}{
		"with the kernel's datapath":      {Config{Underlay: "eth1", UnderlayBridge: "br-underlay"}, "system"},
		"where somebody has made one":     {Config{Underlay: "eth1"}, "netdev"},
		"where Open vSwitch has the link": {Config{Underlay: "eth1", UnderlayBridge: "br-underlay"}, "netdev"},
	} {
		n, node, chassis := userspaceNode(c.cfg)
		if strings.Contains(name, "has the link") {
			n.interfaces = []string{"eth1"}
		}
		got, _, err := chassis.reconcile(t.Context(), n, node, c.datapath)
		if err != nil || got.Link != "eth1" || slices.Contains(n.calls, "CreateUnderlay") {
			t.Errorf("%s: %+v, %v, %v", name, got, err, n.calls)
		}
	}
}

func TestUnderlayIsNotTheNodesOwnLink(t *testing.T) {
	n, node, c := userspaceNode(Config{UnderlayBridge: "br-underlay"})
	_, _, err := c.reconcile(t.Context(), n, node, "netdev")
	if err == nil || !strings.Contains(err.Error(), "GODWIT_UNDERLAY") || slices.Contains(n.calls, "CreateUnderlay") {
		t.Errorf("the link by which the node is reached: %v, %v", err, n.calls)
	}
}
