package netdev

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// The other end of a veth is found whatever became of it: KubeVirt renames it and gives it another address.
func TestPeerIndex(t *testing.T) {
	h := newHost(t)
	hostName, pod := makePod(t, h, podInterface(true))
	want := 0
	if err := InNetns(pod, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		want = link.Attrs().Index
		return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, "eth0-nic"))
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := h.PeerIndex(hostName); err != nil || got != want {
		t.Errorf("other end of %s is %d (%v), want %d", hostName, got, err, want)
	}
	if _, err := h.PeerIndex("none"); !errors.Is(err, ErrNoLink) {
		t.Errorf("other end of a link that is not there: %v, want %v", err, ErrNoLink)
	}
	if _, err := h.PeerIndex("lo"); err == nil {
		t.Error("lo has another end")
	}
}

func TestCheckLauncher(t *testing.T) {
	h, want := newHost(t), podInterface(true)
	_, pod := makePod(t, h, want)
	if err := h.CheckLauncher(pod, want); err != nil {
		t.Errorf("launcher before KubeVirt plumbs it: %v", err)
	}
	change := func(name string, f func(netlink.Link) error) {
		t.Helper()
		if err := InNetns(pod, func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return f(link)
		}); err != nil {
			t.Fatal(err)
		}
	}
	change("eth0", func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "eth0-nic"), netlink.LinkSetHardwareAddr(l, []byte{2, 1, 2, 3, 4, 5}), netlink.LinkSetUp(l))
	})
	if err := h.CheckLauncher(pod, want); err != nil {
		t.Errorf("launcher as KubeVirt plumbs it: %v", err)
	}
	if err := h.CheckContainer(pod, want); !errors.Is(err, ErrNoLink) {
		t.Errorf("ordinary pod that looks so: %v, want %v", err, ErrNoLink)
	}
	change("eth0-nic", netlink.LinkSetDown)
	if err := h.CheckLauncher(pod, want); err == nil {
		t.Error("a launcher's link that is down is accepted")
	}
}
