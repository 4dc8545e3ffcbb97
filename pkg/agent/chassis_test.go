package agent

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

// Other nodes make their tunnels anew when this one's end moves: an address that comes later, as those of virtual IPs and of privacy do, moves it nowhere.
func TestTunnelStays(t *testing.T) {
	addr := func(link, p string) netdev.HostAddr {
		return netdev.HostAddr{Link: link, Addr: netip.MustParsePrefix(p), MTU: 1500}
	}
	five, nine, virtual, private := addr("eth1", "fd00:1::5/64"), addr("eth1", "fd00:1::9/64"), addr("eth1", "fd00:1::f/128"), addr("eth1", "fd00:1::aa/64")
	private.Temporary = true
	for name, c := range map[string]struct {
		addrs         []netdev.HostAddr // of IPv6 the kernel's first is the latest
		current, want string
	}{
		"later ones":                      {[]netdev.HostAddr{virtual, private, nine, five}, "fd00:1::5", "fd00:1::5"},
		"the one that there was is gone":  {[]netdev.HostAddr{virtual, private, nine}, "fd00:1::5", "fd00:1::9"},
		"at first":                        {[]netdev.HostAddr{virtual, private, five}, "", "fd00:1::5"},
		"a temporary one was taken":       {[]netdev.HostAddr{private, five}, "fd00:1::aa", "fd00:1::5"},
		"a temporary one and no other":    {[]netdev.HostAddr{private}, "", "fd00:1::aa"},
		"IPv4 has come":                   {[]netdev.HostAddr{five, addr("eth1", "198.51.100.1/24")}, "fd00:1::5", "198.51.100.1"},
		"one on lo":                       {[]netdev.HostAddr{addr("lo", "198.51.100.9/32"), addr("eth1", "198.51.100.1/24")}, "", "198.51.100.1"},
		"tunnels ended on lo until now":   {[]netdev.HostAddr{addr("lo", "198.51.100.9/32"), addr("eth1", "198.51.100.1/24")}, "198.51.100.9", "198.51.100.1"},
		"what is on lo was asked for":     {[]netdev.HostAddr{addr("lo", "198.51.100.9/32")}, "", "198.51.100.9"},
		"one of several of an IPv4 link":  {[]netdev.HostAddr{addr("eth1", "198.51.100.1/24"), addr("eth1", "198.51.100.2/24")}, "198.51.100.2", "198.51.100.2"},
		"somebody's that is not the rule": {[]netdev.HostAddr{five, addr("eth2", "fd00:2::1/64")}, "fd00:2::1", "fd00:1::5"},
	} {
		current, _ := netip.ParseAddr(c.current)
		rule := "eth1"
		if strings.Contains(name, "on lo") {
			rule = "198.51.100.0/24"
		}
		if got, err := chooseTunnel(Config{Underlay: rule}, nil, c.addrs, current); err != nil || got.IP.String() != c.want {
			t.Errorf("%s: tunnels end at %s (%v), want %s", name, got.IP, err, c.want)
		}
	}
}

func TestChooseTunnel(t *testing.T) {
	addr := func(link, p string, mtu int) netdev.HostAddr {
		return netdev.HostAddr{Link: link, Addr: netip.MustParsePrefix(p), MTU: mtu}
	}
	addrs := []netdev.HostAddr{
		addr("eth0", "fd00:1::1/64", 1500), addr("eth0", "192.0.2.1/24", 1500), addr("eth1", "198.51.100.1/24", 9000), addr("eth1", "198.51.100.2/24", 9000),
		addr("six0", "fd00:2::1/64", 1500), addr("thin0", "203.0.113.1/24", 1300), addr("ovn0", "100.64.0.11/16", 1442),
	}
	for _, c := range []struct {
		name, underlay string
		mtu            int
		internal       []string
		want           tunnel
		err            string
		pending        bool
	}{
		{name: "InternalIP", internal: []string{"192.0.2.1"}, want: tunnel{"eth0", netip.MustParseAddr("192.0.2.1"), 1442}},
		{name: "IPv4 of two InternalIPs", internal: []string{"fd00:1::1", "192.0.2.1"}, want: tunnel{"eth0", netip.MustParseAddr("192.0.2.1"), 1442}},
		{name: "IPv6 alone", internal: []string{"fd00:1::1"}, want: tunnel{"eth0", netip.MustParseAddr("fd00:1::1"), 1422}},
		{name: "interface", underlay: "eth1", want: tunnel{"eth1", netip.MustParseAddr("198.51.100.1"), 8942}},
		{name: "interface, IPv4 first", underlay: "eth0", want: tunnel{"eth0", netip.MustParseAddr("192.0.2.1"), 1442}},
		{name: "CIDR", underlay: "198.51.100.2/31", want: tunnel{"eth1", netip.MustParseAddr("198.51.100.2"), 8942}},
		{name: "IPv6 CIDR", underlay: "fd00:2::/64", want: tunnel{"six0", netip.MustParseAddr("fd00:2::1"), 1422}},
		{name: "lower MTU", underlay: "eth1", mtu: 1400, want: tunnel{"eth1", netip.MustParseAddr("198.51.100.1"), 1400}},
		{name: "MTU too high", underlay: "eth0", mtu: 1443, err: "--mtu 1443 does not fit: underlay eth0 has MTU 1500, and tunnels take 58 of it: lower --mtu to 1442"},
		{name: "underlay too small", underlay: "thin0", err: "leaves pods 1242: IPv6 needs 1280: raise the underlay's MTU to 1338 or more"},
		{name: "no such address", internal: []string{"192.0.2.99"}, err: "no link of the node has an InternalIP of the Node ([192.0.2.99])", pending: true},
		{name: "no such interface", underlay: "eth9", err: "--underlay eth9", pending: true},
		{name: "never through itself", underlay: "100.64.0.0/16", err: "--underlay 100.64.0.0/16", pending: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var internal []netip.Addr
			for _, s := range c.internal {
				internal = append(internal, netip.MustParseAddr(s))
			}
			got, err := chooseTunnel(Config{Underlay: c.underlay, MTU: c.mtu}, internal, addrs, netip.Addr{})
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v, %v, want %+v, %q", got, err, c.want, c.err)
			}
			if errors.Is(err, errPending) != c.pending {
				t.Errorf("pending is %v, want %v: whether an event will change it", errors.Is(err, errPending), c.pending)
			}
		})
	}
}

func TestMTUIsPublishedOnce(t *testing.T) {
	n := newFakeNode()
	n.addrs = []netdev.HostAddr{{Link: "eth0", Addr: netip.MustParsePrefix("192.0.2.1/24"), MTU: 1500}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{}}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}},
	}}
	writes := 0
	c := &chassis{cfg: Config{NodeName: "one"}, host: n, annotate: func(_ context.Context, key, value string) error {
		writes++
		node.Annotations[key] = value
		return nil
	}}
	for range 3 {
		if _, _, err := c.reconcile(t.Context(), n, node, "netdev"); err != nil {
			t.Fatal(err)
		}
	}
	if writes != 1 || node.Annotations[v1alpha1.MTUAnnotation] != "1442" {
		t.Errorf("annotation %q written %d times, want 1442 once", node.Annotations[v1alpha1.MTUAnnotation], writes)
	}
}

func TestValidateReportsEveryError(t *testing.T) {
	good := Defaults()
	good.NodeName, good.SBRemote = "one", "tcp:192.0.2.1:6642,tcp:[2001:db8::1]:6642"
	if err := good.Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	bad := Config{
		NodeName: "godwit-none", SBRemote: "192.0.2.1", OVSEndpoint: "x", Underlay: "10.0.0.0/99", MTU: 100, Datapath: "fast",
		CNISocket: "x", CNIBinSource: "x", CNIBinDir: "x", CNIConfDir: "x", MetricsAddress: "x",
	}
	err := bad.Validate()
	if err == nil {
		t.Fatal("a bad configuration was accepted")
	}
	for _, want := range []string{
		"--node-name godwit-none is reserved", "--sb-remote", "--ovs-db", "--underlay", "--mtu 100", "--datapath", "--cni-socket",
		"--cni-bin-source", "--cni-bin-dir", "--cni-conf-dir", "--metrics-address",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q", want)
		}
	}
	if err := new(Config).Validate(); err == nil || !strings.Contains(err.Error(), "--node-name is empty") {
		t.Errorf("an empty configuration: %v", err)
	}
}
