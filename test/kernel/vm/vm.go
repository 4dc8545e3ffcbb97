// Package vm boots a virtual machine whose kernel has what this machine's may lack: Open vSwitch, Geneve, connection tracking, SCTP. It is made of the lab's
// packages (QEMU, a kernel, the programs of OVN and Open vSwitch with their libraries) and has no disk: all is in memory. It reaches nothing but the network namespace that
// it runs in, which has nothing but the machine and what the tests put beside it. Everything ends with this process, however that ends.
package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/kernel/control"
	"github.com/godwit-cni/godwit/test/lab/guest/bundle"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// The network between the machine and the tests. In the machine it is the bridge Bridge, into which namespaces are plugged.
var (
	// Outside is the address of the tests' side, Inside that of the machine. Both are Network's.
	Outside = netip.MustParseAddr("172.31.0.1")
	Inside  = netip.MustParseAddr("172.31.0.2")
	Network = netip.MustParsePrefix("172.31.0.0/24")
)

// Bridge is the name of that bridge.
const Bridge = "mgmt"

const (
	tap = "vm0"
	// bootTimeout bounds a boot, which takes 4 seconds on an idle machine without KVM.
	bootTimeout = 3 * time.Minute
	// helloEvery is how often a machine that boots is asked whether it is there.
	helloEvery = 50 * time.Millisecond
)

// Config says what a machine is made of.
type Config struct {
	// Programs are packages of this checkout, relative to its top, whose programs the machine has in /usr/bin.
	Programs []string
	// MemoryMiB is its memory; 2048 if 0. The disk is in it.
	MemoryMiB int
	Log       *slog.Logger
}

// Machine is a virtual machine that runs. Its methods are safe for concurrent use.
type Machine struct {
	*control.Client

	dir  string
	ns   *netns.Namespace
	qemu *qemu
	log  *slog.Logger
}

// Boot makes a virtual machine and returns when it answers. It needs root.
func Boot(ctx context.Context, c Config) (m *Machine, err error) {
	start := time.Now()
	base, err := packages.Ensure(ctx, c.Log)
	if err != nil {
		return nil, err
	}
	tree, err := packages.EnsureVM(ctx, c.Log)
	if err != nil {
		return nil, err
	}
	emulator, err := bundle.FindEmulator(tree)
	if err != nil {
		return nil, err
	}
	m = &Machine{log: c.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
			m = nil // or whoever has it closes it again
		}
	}()
	if m.dir, err = os.MkdirTemp("", "gwvm"); err != nil {
		return m, fmt.Errorf("make a directory for the virtual machine: %w", err)
	}
	disk := filepath.Join(m.dir, "disk")
	if err := writeDisk(ctx, c, base, emulator.Kernel, disk); err != nil {
		return m, err
	}
	accel, err := accelerator(ctx, c.Log, emulator)
	if err != nil {
		return m, err
	}
	if err := m.network(); err != nil {
		return m, err
	}
	made := time.Now()
	cfg := hardware{accelerator: accel, memoryMiB: c.MemoryMiB, disk: disk, serial: m.serial(), tap: tap, address: netip.PrefixFrom(Inside, Network.Bits())}
	if m.qemu, err = startQEMU(ctx, m.ns, emulator, cfg); err != nil {
		return m, err
	}
	m.Client = control.NewClient(netip.AddrPortFrom(Inside, control.Port).String(), m.Dial)
	if err := m.await(ctx); err != nil {
		return m, err
	}
	c.Log.Info("the virtual machine answers", "accelerator", accel, "prepared", made.Sub(start).Round(time.Millisecond), "booted", time.Since(made).Round(time.Millisecond))
	return m, os.Remove(disk) // QEMU has read it
}

// network makes the namespace, and in it the tap.
func (m *Machine) network() (err error) {
	if m.ns, err = netns.New(); err != nil {
		return err
	}
	return m.ns.Do(func() error {
		t := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tap}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_DEFAULTS}
		if err := netlink.LinkAdd(t); err != nil {
			return fmt.Errorf("make tap %s: %w: this needs root and /dev/net/tun", tap, err)
		}
		addr, err := netlink.ParseAddr(netip.PrefixFrom(Outside, Network.Bits()).String())
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.AddrAdd(t, addr), netlink.LinkSetUp(t), netlink.LinkSetUp(lo)); err != nil {
			return fmt.Errorf("bring up tap %s: %w", tap, err)
		}
		return nil
	})
}

// await returns when the machine answers.
func (m *Machine) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		hello, stop := context.WithTimeout(ctx, time.Second)
		err := m.Hello(hello)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-m.qemu.ended:
			return fmt.Errorf("boot the virtual machine: QEMU ended: %w: its console said last:\n%s", m.qemu.exit, m.Console(30))
		case <-ctx.Done():
			return fmt.Errorf("boot the virtual machine: it does not answer: %w: its console said last:\n%s", errors.Join(ctx.Err(), err), m.Console(30))
		case <-time.After(helloEvery):
		}
	}
}

// Do runs f in the network namespace that the machine reaches, see netns.Namespace.Do.
func (m *Machine) Do(f func() error) error { return m.ns.Do(f) }

// Dial connects to an address of the machine, or of a namespace in it. addr must be numeric.
func (m *Machine) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	var d net.Dialer
	// On a thread of its own: nobody waits until another's attempt has failed.
	err = netns.Do(m.ns.Path(), func() error { conn, err = d.DialContext(ctx, network, addr); return err })
	return conn, err
}

// Console is the end of what the machine's kernel and first process have said.
func (m *Machine) Console(lines int) string { return tail(m.serial(), lines) }

func (m *Machine) serial() string { return filepath.Join(m.dir, "console") }

// Close ends the machine and removes what belongs to it. What it was asked meanwhile fails. It must be called once, and no other method after it.
func (m *Machine) Close() error {
	if m.Client != nil {
		m.Client.Close()
	}
	if m.qemu != nil {
		m.qemu.kill()
	}
	if m.ns != nil {
		m.ns.Close()
	}
	if m.dir == "" {
		return nil
	}
	return os.RemoveAll(m.dir)
}

func tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
