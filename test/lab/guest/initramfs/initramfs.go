// Package initramfs makes the whole disk of the lab's guest: busybox, the modules of a network card and a power button, a traffic server and an init script, as
// the archive that a kernel unpacks at boot. The same input gives the same bytes.
package initramfs

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/packages"
)

//go:embed init.sh
var initScript []byte

//go:embed lease.sh
var leaseScript []byte

//go:embed nic.sh
var nicScript []byte

// modules of the kernel that the guest loads, in this order, each after what it depends on. Some kernels have them built in.
var modules = []string{"virtio_pci", "virtio_net", "button", "evdev"}

// powerButton is what busybox's acpid runs when the power button is pressed.
const powerButton = "etc/acpi/PWRF/00000080"

// Parts are what the archive is made of, as paths on this machine.
type Parts struct {
	Kernel packages.Kernel
	// Busybox is a static busybox with the applets that init needs.
	Busybox string
	// Programs are static programs, put into /bin by their file names.
	Programs []string
	// Applets are busybox's names.
	Applets []string
}

// Build returns the archive. It is not compressed: an emulated processor takes longer to unpack it than QEMU to copy it.
func Build(p Parts) ([]byte, error) {
	var a archive
	for _, d := range []string{"bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp"} {
		a.dir(d)
	}
	a.file("init", 0o755, initScript)
	a.file("bin/lease", 0o755, leaseScript)
	a.file("bin/nic", 0o755, nicScript)
	a.file(powerButton, 0o755, []byte("#!/bin/sh\npoweroff -f\n"))
	a.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	// Without a device the kernel has no console for init before devtmpfs is mounted.
	a.device("dev/console", 5, 1)
	for _, from := range append([]string{p.Busybox}, p.Programs...) {
		if err := a.copy("bin/"+path.Base(from), from); err != nil {
			return nil, err
		}
	}
	for _, name := range p.Applets {
		if name != "busybox" {
			a.link("bin/"+name, "busybox")
		}
	}
	order, err := addModules(&a, p.Kernel.Modules, modules)
	if err != nil {
		return nil, err
	}
	a.file("lib/modules/order", 0o644, []byte(strings.Join(order, "\n")+"\n"))
	return a.bytes(), nil
}

// addModules adds the modules and what they depend on, and returns their files in the order of loading.
func addModules(a *archive, dir string, modules []string) ([]string, error) {
	all, err := findModules(dir)
	if err != nil {
		return nil, err
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		file, ok := all[name]
		if !ok || slices.Contains(order, name+".ko") {
			return nil // built into the kernel, or there already
		}
		content, err := readModule(file)
		if err != nil {
			return err
		}
		depends, err := dependencies(content)
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		for _, d := range depends {
			if err := add(d); err != nil {
				return err
			}
		}
		a.file("lib/modules/"+name+".ko", 0o644, content)
		order = append(order, name+".ko")
		return nil
	}
	for _, m := range modules {
		if err := add(m); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// archive is a cpio archive in the "newc" format of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	buf   bytes.Buffer
	inode int
}

const (
	typeDir    = 0o040000
	typeFile   = 0o100000
	typeLink   = 0o120000
	typeDevice = 0o020000
)

func (a *archive) dir(name string) { a.member(name, typeDir|0o755, nil, [2]int{}) }
func (a *archive) file(name string, mode int, content []byte) {
	a.member(name, typeFile|mode, content, [2]int{})
}
func (a *archive) link(name, to string) { a.member(name, typeLink|0o777, []byte(to), [2]int{}) }
func (a *archive) device(name string, major, minor int) {
	a.member(name, typeDevice|0o600, nil, [2]int{major, minor})
}

func (a *archive) copy(name, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("add %s to the guest's disk: %w", name, err)
	}
	a.file(name, 0o755, content)
	return nil
}

// member writes one header of thirteen numbers, the name and the content, each padded to four bytes.
func (a *archive) member(name string, mode int, content []byte, device [2]int) {
	a.inode++
	const links, owner, mtime = 1, 0, 0
	a.buf.WriteString("070701")
	for _, n := range []int{a.inode, mode, owner, owner, links, mtime, len(content), 0, 0, device[0], device[1], len(name) + 1, 0} {
		_, _ = fmt.Fprintf(&a.buf, "%08x", n)
	}
	a.buf.WriteString(name)
	a.buf.WriteByte(0)
	a.pad()
	a.buf.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) bytes() []byte {
	a.member("TRAILER!!!", 0, nil, [2]int{})
	return a.buf.Bytes()
}
