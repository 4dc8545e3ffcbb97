package frame

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestARPAnnouncement(t *testing.T) {
	const want = "ffffffffffff0a670af400070806" + "0001080006040001" + "0a670af40007c000024d" + "000000000000c000024d" + "000000000000000000000000000000000000"
	if got := hex.EncodeToString(Announcement(vm, netip.MustParseAddr("192.0.2.77"))); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// A kernel that knows another MAC for an address learns the new one from the announcement, of either family: it accepts frame and checksum.
func TestAnnouncementIsLearnt(t *testing.T) {
	near, far, index := pair(t)
	for _, text := range []string{"192.0.2.77", "2001:db8::77"} {
		addr := netip.MustParseAddr(text)
		if err := near.Do(func() error {
			link, err := netlink.LinkByName("near")
			if err != nil {
				return err
			}
			own := "192.0.2.1/24"
			if addr.Is6() {
				own = "2001:db8::1/64"
			}
			a, err := netlink.ParseAddr(own)
			if err != nil {
				return err
			}
			neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: other, State: netlink.NUD_STALE}
			return errors.Join(netlink.AddrAdd(link, a), netlink.NeighSet(neighbour))
		}); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		for got := ""; got != vm.String(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s is known to be at %q, want %s", addr, got, vm)
			}
			if err := far.Do(func() error { return Send(index, Announcement(vm, addr)) }); err != nil {
				t.Fatal(err)
			}
			if err := near.Do(func() error {
				list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
				for _, n := range list {
					if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == addr {
						got = n.HardwareAddr.String()
					}
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
