// Package bundle puts together what a launcher needs: QEMU with its firmware, a kernel and the guest's disk, as files of this machine or as a container image.
package bundle

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/guest/initramfs"
	"github.com/godwit-cni/godwit/test/lab/guest/pod"
	"github.com/godwit-cni/godwit/test/lab/image"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// Programs are the packages of this checkout whose programs a bundle holds, for source.Programs.
func Programs() []string {
	return []string{launcher, traffic, dhcp6}
}

const (
	launcher = "./test/lab/guest/launcher"
	traffic  = "./test/lab/traffic/traffic"
	dhcp6    = "./test/lab/guest/dhcp6"
)

// Bundle is all that a launcher needs, as files of this machine.
type Bundle struct {
	// Launcher is its program.
	Launcher string
	// QEMU is the emulator; Firmware its firmware; Modules the directory of its modules.
	QEMU     string
	Firmware []string
	Modules  string
	// Kernel is the guest's; Initramfs is the content of its disk.
	Kernel    string
	Initramfs []byte

	root *packages.Root
}

// New finds or makes everything. base is the tree of packages.Ensure, programs a directory with the programs that Programs names, built.
func New(ctx context.Context, log *slog.Logger, base *packages.Root, programs string) (*Bundle, error) {
	root, err := packages.EnsureVM(ctx, log)
	if err != nil {
		return nil, err
	}
	e, err := FindEmulator(root)
	if err != nil {
		return nil, err
	}
	b := &Bundle{
		Launcher: filepath.Join(programs, filepath.Base(launcher)), QEMU: e.QEMU, Firmware: e.Firmware, Modules: e.Modules, Kernel: e.Kernel.Image, root: root,
	}
	busybox, err := base.Program("busybox")
	if err != nil {
		return nil, err
	}
	applets, err := base.Command(ctx, "busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", err)
	}
	b.Initramfs, err = initramfs.Build(initramfs.Parts{
		Kernel: e.Kernel, Busybox: busybox, Applets: strings.Fields(string(applets)),
		Programs: []string{filepath.Join(programs, filepath.Base(traffic)), filepath.Join(programs, filepath.Base(dhcp6))},
	})
	return b, err
}

// Command is a launcher as a plain process of this machine. dir is the directory of its sockets, and gets the guest's disk. It needs root and a network namespace of
// its own with a link as a CNI makes it.
func (b *Bundle) Command(ctx context.Context, dir, resolvConf string) (*exec.Cmd, error) {
	disk := filepath.Join(dir, "initramfs")
	if err := os.WriteFile(disk, b.Initramfs, 0o600); err != nil {
		return nil, fmt.Errorf("write the guest's disk: %w", err)
	}
	cmd := exec.CommandContext(ctx, b.Launcher, "--dir", dir, "--qemu", b.QEMU, "--firmware", strings.Join(firmwareOf(b.Firmware), ","),
		"--kernel", b.Kernel, "--initramfs", disk, "--resolv-conf", resolvConf)
	cmd.Env = append(append(os.Environ(), b.root.Environ()...), "QEMU_MODULE_DIR="+b.Modules)
	return cmd, nil
}

// Image is a launcher pod's image.
func (b *Bundle) Image() (image.Image, error) {
	img := image.Image{Ref: pod.Image, Entrypoint: []string{"/usr/bin/launcher"}, Env: []string{"PATH=/usr/bin:/bin", "QEMU_MODULE_DIR=" + imageModules}}
	seen := map[string]bool{}
	add := func(files ...image.File) {
		for _, f := range files {
			if !seen[f.Path] {
				seen[f.Path] = true
				img.Files = append(img.Files, f)
			}
		}
	}
	for _, p := range [][2]string{{"/usr/bin/" + qemu, b.QEMU}, {imageModules + "/" + accelerator, filepath.Join(b.Modules, accelerator)}} {
		files, err := image.Program(p[0], p[1], b.root.Libraries())
		if err != nil {
			return image.Image{}, err
		}
		add(files...)
	}
	for _, f := range b.Firmware {
		add(image.File{Path: "/usr/share/qemu/" + filepath.Base(f), From: f, Mode: 0o644})
	}
	add(
		image.File{Path: "/usr/bin/launcher", From: b.Launcher}, image.File{Path: "/guest/vmlinuz", From: b.Kernel, Mode: 0o644},
		image.File{Path: "/guest/initramfs", Content: b.Initramfs, Mode: 0o644}, image.File{Path: "/tmp", Dir: true, Mode: 0o1777},
	)
	return img, nil
}

const imageModules = "/usr/lib/qemu"
