package frame

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

var (
	vm    = net.HardwareAddr{0x0a, 0x67, 0x0a, 0xf4, 0x00, 0x07}
	other = net.HardwareAddr{0x0a, 0x67, 0x0a, 0xf4, 0x00, 0x08}
)

// What QEMU's announce_self_create makes, field by field.
const qemuRARP = "ffffffffffff0a670af4000780350001080006040003" + "0a670af4000700000000" + "0a670af4000700000000" + "000000000000000000000000000000000000"

func TestRARPIsQEMUs(t *testing.T) {
	if got := hex.EncodeToString(RARP(vm)); got != qemuRARP {
		t.Errorf("RARP is\n%s, want\n%s", got, qemuRARP)
	}
}

// pair makes a veth between two namespaces and returns them with the far end's index.
func pair(t *testing.T) (near, far *netns.Namespace, index int) {
	t.Helper()
	var spaces []*netns.Namespace
	for range 2 {
		ns, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ns.Close)
		spaces = append(spaces, ns)
	}
	near, far = spaces[0], spaces[1]
	fd, err := os.Open(far.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fd.Close() }()
	if err := near.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "near"
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "far", PeerNamespace: netlink.NsFd(int(fd.Fd()))}
		return errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth))
	}); err != nil {
		t.Fatal(err)
	}
	if err := far.Do(func() error {
		link, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		return netlink.LinkSetUp(link)
	}); err != nil {
		t.Fatal(err)
	}
	return near, far, index
}

func ethernet(dst, src net.HardwareAddr, etherType ...byte) []byte {
	return slices.Concat(dst, src, etherType, make([]byte, minimum-header))
}

func capture(t *testing.T, ns *netns.Namespace) *Capture {
	t.Helper()
	var c *Capture
	if err := ns.Do(func() (err error) { c, err = Open("near", vm); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return c
}

// settled is a capture whose times are the kernel's already, see Open.
func settled(t *testing.T, near, far *netns.Namespace, index int) *Capture {
	t.Helper()
	c := capture(t, near)
	for range 1000 {
		if err := far.Do(func() error { return Send(index, RARP(vm)) }); err != nil {
			t.Fatal(err)
		}
		sent := time.Now()
		time.Sleep(time.Millisecond)
		if read(t, c, 1)[0].At.Before(sent) {
			return c
		}
	}
	t.Fatal("frames have the times at which they are read")
	return nil
}

// read collects n frames; it fails when they do not come.
func read(t *testing.T, c *Capture, n int) []Seen {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { _ = c.Close() })
	defer late.Stop()
	var all []Seen
	for len(all) < n {
		buf := make([]Seen, 3)
		k, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%d frames seen, want %d: %v", len(all), n, err)
		}
		all = append(all, buf[:k]...)
	}
	return all
}

func TestCaptureSeesTheVMsFrames(t *testing.T) {
	near, far, index := pair(t)
	c := settled(t, near, far, index)
	broadcast := net.HardwareAddr(bytes.Repeat([]byte{0xff}, 6))
	send := func(frame []byte) time.Time {
		t.Helper()
		at := time.Now()
		if err := far.Do(func() error { return Send(index, frame) }); err != nil {
			t.Fatal(err)
		}
		return at
	}
	send(ethernet(broadcast, other, 0x08, 0x06))                                // of somebody else
	send(ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}, vm, 0x86, 0xdd))    // router solicitation
	first := send(ethernet(other, vm, 0x08, 0x00))                              // seen
	rarp := send(RARP(other))                                                   // seen: OVN does not look at the address either
	if err := near.Do(func() error { return toPod(t, RARP(vm)) }); err != nil { // to the VM
		t.Fatal(err)
	}
	last := send(RARP(vm)) // seen
	end := time.Now()
	got := read(t, c, 3)
	if len(got) != 3 || got[0].RARP || !got[1].RARP || !got[2].RARP {
		t.Fatalf("seen %+v, want a frame and two RARPs", got)
	}
	if want := "EtherType 0x0800 to " + other.String(); got[0].String() != want {
		t.Errorf("the frame is said to be %q, want %q", got[0], want)
	}
	for i, bounds := range [][2]time.Time{{first, rarp}, {rarp, last}, {last, end}} {
		if at := got[i].At; at.Before(bounds[0].Truncate(time.Microsecond)) || at.After(bounds[1]) {
			t.Errorf("frame %d was seen at %s, want between %s and %s", i, at, bounds[0], bounds[1])
		}
	}
}

// toPod sends out of the near end.
func toPod(t *testing.T, frame []byte) error {
	t.Helper()
	link, err := netlink.LinkByName("near")
	if err != nil {
		return err
	}
	return Send(link.Attrs().Index, frame)
}

// A reader that is late loses nothing and sees true times.
func TestCaptureKeepsFrames(t *testing.T) {
	near, far, index := pair(t)
	c := settled(t, near, far, index)
	const n = 300
	if err := far.Do(func() error {
		for range n {
			if err := Send(index, ethernet(other, vm, 0x08, 0x00)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	sent := time.Now()
	all := read(t, c, n)
	for i := 1; i < n; i++ {
		if all[i].At.Before(all[i-1].At) {
			t.Fatalf("frame %d was seen before frame %d", i, i-1)
		}
	}
	if all[n-1].At.After(sent) {
		t.Errorf("the last frame's time is when it was read")
	}
}

func TestCaptureEnds(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *Capture, *netns.Namespace) error{
		"closed": func(t *testing.T, c *Capture, _ *netns.Namespace) error { t.Helper(); return c.Close() },
		"link gone": func(t *testing.T, _ *Capture, ns *netns.Namespace) error {
			t.Helper()
			return ns.Do(func() error {
				link, err := netlink.LinkByName("near")
				if err != nil {
					return err
				}
				return netlink.LinkDel(link)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, _, _ := pair(t)
			c := capture(t, near)
			got := make(chan error, 1)
			go func() { _, err := c.Read(make([]Seen, 1)); got <- err }()
			if err := end(t, c, near); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-got:
				if err == nil || errors.Is(err, os.ErrClosed) != (name == "closed") {
					t.Errorf("Read ended with %v", err)
				}
			case <-time.After(time.Minute):
				t.Error("Read did not end")
			}
		})
	}
}

func TestOpenNamesTheLink(t *testing.T) {
	near, _, _ := pair(t)
	err := near.Do(func() error { _, err := Open("none", vm); return err })
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("link none")) {
		t.Errorf("error is %v, want one that names the link", err)
	}
}

func TestReadClock(t *testing.T) {
	a, err := ReadClock()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReadClock()
	if err != nil {
		t.Fatal(err)
	}
	if len(a.BootID) != 36 || a.BootID != b.BootID {
		t.Errorf("boot IDs are %q and %q, want one UUID", a.BootID, b.BootID)
	}
	if a.MaxError < 0 {
		t.Errorf("clock's error is bounded by %s", a.MaxError)
	}
}

// An agent's own RARP opens a port as any other, and is not taken for the VM's.
func TestOpeningIsToldFromAnAnnouncement(t *testing.T) {
	near, far, index := pair(t)
	c := capture(t, near)
	t.Cleanup(func() { _ = c.Close() })
	if err := far.Do(func() error {
		return errors.Join(Send(index, Opening(vm)), Send(index, RARP(vm)), Send(index, ethernet(other, vm, 0x08, 0x00)))
	}); err != nil {
		t.Fatal(err)
	}
	var got []Seen
	for frames := make([]Seen, 3); len(got) < 3; {
		n, err := c.Read(frames)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, frames[:n]...)
	}
	for i, want := range []Seen{{RARP: true, Ours: true}, {RARP: true}, {}} {
		if got[i].RARP != want.RARP || got[i].Ours != want.Ours {
			t.Errorf("frame %d: %+v, want RARP %t, ours %t", i, got[i], want.RARP, want.Ours)
		}
	}
	if a, b := Opening(vm), RARP(vm); len(a) != len(b) || !bytes.Equal(a[:marked], b[:marked]) {
		t.Errorf("%x is not as %x in what means something", a, b)
	}
}
