// Command pid1 is the first process of the virtual machine that package vm boots: it mounts, loads modules, brings the network up, and serves package control.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/kernel/control"
)

// linkTimeout bounds the wait for the network card, which its driver makes.
const linkTimeout = 20 * time.Second

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(context.Background(), log); err != nil { //nolint:forbidigo // main
		log.Error("the virtual machine ends", "error", err)
	}
	// The kernel does not survive the end of its first process.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(ctx context.Context, log *slog.Logger) error {
	if err := mountAll(); err != nil {
		return err
	}
	for k, v := range map[string]string{"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": "/root"} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	if err := loadModules(log); err != nil {
		return err
	}
	address, err := argument("godwit.address=")
	if err != nil {
		return err
	}
	if address == "" { // asked only whether it boots
		return nil
	}
	if err := bringUp(address); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf(":%d", control.Port))
	if err != nil {
		return err
	}
	return (&http.Server{Handler: control.NewServer(log).Handler(), ReadHeaderTimeout: time.Minute}).Serve(l)
}

func mountAll() error {
	for _, m := range []struct{ kind, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	// What /etc would make of the host's name and the like is not needed.
	return errors.Join(os.MkdirAll("/root", 0o700), os.MkdirAll("/var/log", 0o755), os.MkdirAll("/var/run", 0o755), os.MkdirAll(control.NamespaceDir, 0o755))
}

// loadModules loads what the disk lists, in its order.
func loadModules(log *slog.Logger) error {
	const dir = "/lib/modules"
	f, err := os.Open(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if err := loadModule(filepath.Join(dir, lines.Text())); err != nil {
			log.Warn("a module does not load", "module", lines.Text(), "error", err)
		}
	}
	return lines.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// argument is the value of a word of the kernel's command line.
func argument(prefix string) (string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	for _, word := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(word, prefix); ok {
			return v, nil
		}
	}
	return "", nil
}

// bringUp makes the bridge Bridge, which has the machine's address and its network card: namespaces that are plugged into it reach the tests as the machine does.
func bringUp(address string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	nic, err := awaitLink("eth0")
	if err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "mgmt"}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("make bridge mgmt: %w", err)
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(br, addr), netlink.LinkSetMaster(nic, br)); err != nil {
		return fmt.Errorf("address bridge mgmt: %w", err)
	}
	for _, l := range []netlink.Link{lo, nic, br} {
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

func awaitLink(name string) (netlink.Link, error) {
	for deadline := time.Now().Add(linkTimeout); ; time.Sleep(10 * time.Millisecond) {
		l, err := netlink.LinkByName(name)
		if err == nil || time.Now().After(deadline) {
			return l, err
		}
	}
}
