package netdev

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// echoPair makes a veth between two namespaces, with addresses of both families, and returns one of them; the other end carries less.
func echoPair(t *testing.T, mtu, otherMTU int) (path string) {
	t.Helper()
	here, there := namespace(t), namespace(t)
	if err := InNetns(here.Path(), func() error {
		other, err := netns.GetFromPath(there.Path())
		if err != nil {
			return err
		}
		defer func() { _ = other.Close() }()
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "echo0"}, PeerName: "echo1", PeerNamespace: netlink.NsFd(int(other))})
	}); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		path, link, four, six string
		mtu                   int
	}{{here.Path(), "echo0", "192.0.2.1/24", "2001:db8::1/64", mtu}, {there.Path(), "echo1", "192.0.2.2/24", "2001:db8::2/64", otherMTU}} {
		if err := InNetns(end.path, func() error {
			link, err := netlink.LinkByName(end.link)
			if err != nil {
				return err
			}
			four, err := netlink.ParseAddr(end.four)
			if err != nil {
				return err
			}
			six, err := netlink.ParseAddr(end.six)
			if err != nil {
				return err
			}
			six.Flags = unix.IFA_F_NODAD
			return errors.Join(netlink.LinkSetMTU(link, end.mtu), netlink.LinkSetUp(link), netlink.AddrAdd(link, four), netlink.AddrAdd(link, six))
		}); err != nil {
			t.Fatal(err)
		}
	}
	return here.Path()
}

// What fits into the path comes back, what does not is told from what does not fit into the link.
func TestEcho(t *testing.T) {
	path := echoPair(t, 1400, 1300)
	for _, test := range []struct {
		to   string
		size int
		// wrong is in the error, empty where there is none.
		wrong string
	}{
		{"192.0.2.2", 1280, ""}, {"192.0.2.2", 1300, ""}, {"192.0.2.2", 1400, "no answer"}, {"192.0.2.2", 1401, "echo0 itself does not carry packets of 1401 bytes"},
		{"192.0.2.2", 27, "no room for its headers"}, {"2001:db8::2", 1280, ""}, {"2001:db8::2", 1400, "no answer"}, {"2001:db8::2", 1401, "echo0 itself"},
	} {
		err := InNetns(path, func() error {
			took, err := Echo{Link: "echo0", To: netip.MustParseAddr(test.to), Size: test.size}.Ask(t.Context())
			if err == nil && took <= 0 {
				t.Errorf("%s took %s", test.to, took)
			}
			return err
		})
		if (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%d bytes to %s: %v, want %q", test.size, test.to, err, test.wrong)
		}
	}
	if err := InNetns(path, func() error {
		_, err := Echo{Link: "echo9", To: netip.MustParseAddr("192.0.2.2"), Size: 100}.Ask(t.Context())
		return err
	}); err == nil || !strings.Contains(err.Error(), "over echo9: ") {
		t.Errorf("a link that is not there: %v", err)
	}
}
