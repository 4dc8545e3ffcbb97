package guest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/guest/bundle"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/output"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// The pod that both launchers think to be in, as a CNI would make it.
var (
	gateway = netip.MustParsePrefix("10.9.0.1/24")
	podIP   = netip.MustParsePrefix("10.9.0.5/24")
	podMAC  = net.HardwareAddr{0x0a, 0x58, 10, 9, 0, 5}
)

const (
	podMTU = 1400
	// wire is the bridge that stands in for the network.
	wire = "wire"
)

// world is a network namespace with a bridge, to which pods are connected.
type world struct {
	ns     *netns.Namespace
	bundle *bundle.Bundle
	dir    string
	pods   int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	base, err := packages.Ensure(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	programs, release, err := source.Programs(t.Context(), log, bundle.Programs()...)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: shortDir(t)}
	w.bundle, err = bundle.New(t.Context(), log, base, programs)
	if err == nil {
		err = w.keep(w.bundle)
	}
	release()
	if err != nil {
		t.Fatal(err)
	}
	w.ns = namespace(t)
	err = w.ns.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: wire, MTU: podMTU}}); err != nil {
			return err
		}
		return configure(wire, nil, gateway)
	})
	if err != nil {
		t.Fatalf("make a network: %v", err)
	}
	return w
}

// keep copies the launcher: others may build it anew while the test runs.
func (w *world) keep(b *bundle.Bundle) error {
	program, err := os.ReadFile(b.Launcher)
	if err != nil {
		return err
	}
	b.Launcher = filepath.Join(w.dir, "launcher")
	return os.WriteFile(b.Launcher, program, 0o755)
}

func namespace(t *testing.T) *netns.Namespace {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

// shortDir is a directory whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gwg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func configure(name string, mac net.HardwareAddr, addr netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if mac != nil {
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
	}
	ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
	a := &netlink.Addr{IPNet: ip}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // the network is ours: nothing to wait for
	}
	return errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, a))
}

// pod is a network namespace with a launcher in it.
type pod struct {
	*guest.Client
	ns *netns.Namespace
	// port is the network's end of the pod's link, in the world's namespace.
	port    string
	process *os.Process
	ended   chan struct{}
	status  int // after ended
}

// pod makes a pod whose eth0 is as a CNI makes it, and starts a launcher in it.
func (w *world) pod(t *testing.T) *pod { t.Helper(); return w.podWith(t, addressPod) }

// podWith is pod with other addresses.
func (w *world) podWith(t *testing.T, address func() error) *pod {
	t.Helper()
	w.pods++
	p := &pod{ns: namespace(t), port: fmt.Sprintf("pod%d", w.pods), ended: make(chan struct{})}
	if err := errors.Join(w.ns.Do(func() error { return connect(p.port, p.ns) }), p.ns.Do(address)); err != nil {
		t.Fatalf("make pod %d: %v", w.pods, err)
	}
	dir := filepath.Join(w.dir, p.port)
	resolv := filepath.Join(w.dir, "resolv.conf")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(resolv, []byte("search lab.test\nnameserver 10.9.0.53\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd, err := w.bundle.Command(t.Context(), dir, resolv)
	if err != nil {
		t.Fatal(err)
	}
	p.launch(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if p.Client, err = guest.Dial(ctx, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// launch starts the launcher in the pod's namespace and ends it with the test.
func (p *pod) launch(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var log output.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return nil } // t.Context ends before cleanups: Kill below
	if err := p.ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	p.process = cmd.Process
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // the status is what counts
		p.status = cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-p.ended
		if t.Failed() {
			t.Logf("%s's launcher:\n%s", p.port, log.String())
		}
	})
}

// connect plugs a pod's eth0 into the wire.
func connect(port string, ns *netns.Namespace) error {
	fd, err := unix.Open(ns.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MTU: podMTU}, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	br, err := netlink.LinkByName(wire)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(veth, br), netlink.LinkSetUp(veth))
}

func addressPod() error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetMTU(link, podMTU), configure("eth0", podMAC, podIP)); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.Addr().AsSlice()})
}

// await waits for an event of the launcher after the one with that number.
func (p *pod) await(t *testing.T, after int, what guest.EventType, status ...guest.MigrationStatus) guest.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	e, err := p.Await(ctx, after, func(e guest.Event) bool {
		return e.Type == what && (len(status) == 0 || slices.Contains(status, e.Status))
	})
	if err != nil {
		t.Fatalf("wait for %s %v on %s: %v", what, status, p.port, err)
	}
	return e
}

// last is the number of the launcher's last event so far.
func (p *pod) last(t *testing.T) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	seq := 0
	for e, err := range p.Events(ctx, 0) {
		if err != nil {
			break
		}
		seq = e.Seq
	}
	return seq
}

// wantStatus waits for the launcher's end.
func (p *pod) wantStatus(t *testing.T, want int) {
	t.Helper()
	select {
	case <-p.ended:
		if p.status != want {
			t.Errorf("%s's launcher ended with status %d, want %d", p.port, p.status, want)
		}
	case <-time.After(3 * time.Minute):
		t.Fatalf("%s's launcher has not ended, want status %d", p.port, want)
	}
}

// dial connects to the guest's echo from the network.
func (w *world) dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err = w.ns.Do(func() (err error) {
			conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", addr)
			return err
		})
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		}
	}
	t.Fatalf("the guest does not answer at %s: %v", addr, err)
	return nil
}

// wantEcho sends a line and reads it back.
func wantEcho(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	line += "\n"
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(line)); err != nil {
		t.Fatalf("send %q to the guest: %v", line, err)
	}
	got := make([]byte, len(line))
	for n := 0; n < len(got); {
		m, err := conn.Read(got[n:])
		if err != nil {
			t.Fatalf("read %q back from the guest: %v, got %q", line, err, got[:n])
		}
		n += m
	}
	if string(got) != line {
		t.Errorf("the guest answered %q, want %q", got, line)
	}
}

// frame is one that a sniffer saw.
type frame struct {
	at  time.Time
	src net.HardwareAddr
}

// sniff records frames with that EtherType that come from a port, until stop is called, which returns them. It listens to all frames and looks itself: frames
// that a bridge forwards do not reach listeners to one EtherType.
func (w *world) sniff(t *testing.T, port string, etherType uint16) (stop func() []frame) {
	t.Helper()
	var fd int
	err := w.ns.Do(func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL << 8 // in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	if err != nil {
		t.Fatalf("watch %s: %v", port, err)
	}
	var seen []frame
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for ctx.Err() == nil {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && n >= 14 && binary.BigEndian.Uint16(buf[12:]) == etherType && ll.Pkttype != unix.PACKET_OUTGOING {
				seen = append(seen, frame{time.Now(), slices.Clone(net.HardwareAddr(buf[6:12]))})
				continue
			}
			if err != nil {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	return func() []frame {
		cancel()
		<-done
		_ = unix.Close(fd)
		return seen
	}
}
