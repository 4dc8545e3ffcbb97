package packages

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// vm is what the lab's virtual machines run: an emulator, its firmware and a kernel. They are no part of the cluster's tree, which nodes have as their own /usr.
func vm() set {
	kernel, pattern := "linux-image-cloud-amd64", "boot/vmlinuz-*-cloud-amd64"
	if release, err := os.ReadFile("/etc/os-release"); err == nil && strings.Contains("\n"+string(release), "\nID=ubuntu\n") {
		kernel, pattern = "linux-image-virtual", "boot/vmlinuz-*-generic"
	}
	s := set{kind: "vm-packages", size: "45 MB", wanted: []want{
		{name: "qemu-system-x86", program: "qemu-system-x86_64"},
		{name: kernel, file: pattern},
	}}
	if !strings.HasPrefix(kernel, "linux-image-virtual") {
		// The kernel wants some maker of initial RAM disks, and apt's choice brings systemd and udev: 7 MB that nobody runs.
		s.instead = []string{"tiny-initramfs"}
	}
	return s
}

// EnsureVM returns the tree of what the lab's virtual machines run, downloading and unpacking what is not cached yet (about 45 MB). It needs no privileges.
func EnsureVM(ctx context.Context, log *slog.Logger) (*Root, error) { return vm().ensure(ctx, log) }

// Kernel is a Linux kernel for a virtual machine.
type Kernel struct {
	// Image is the path of what boots, Modules the directory of its modules.
	Image, Modules string
}

// Kernel finds the kernel in the tree of EnsureVM, or on the machine.
func (r *Root) Kernel() (Kernel, error) {
	for _, w := range vm().wanted {
		if w.file == "" {
			continue
		}
		for _, top := range []string{r.dir, "/"} {
			image := find(top, w.file)
			if image == "" {
				continue
			}
			modules, err := r.Path(filepath.Join("usr/lib/modules", strings.TrimPrefix(filepath.Base(image), "vmlinuz-")))
			if err != nil {
				return Kernel{}, fmt.Errorf("find the modules of kernel %s: %w", image, err)
			}
			return Kernel{Image: image, Modules: modules}, nil
		}
	}
	return Kernel{}, fmt.Errorf("find a kernel for virtual machines: %w: neither the unpacked packages in %s nor this machine have one", fs.ErrNotExist, r.dir)
}

// find is a file that matches the pattern below top, or empty. Where there are several, any serves.
func find(top, pattern string) string {
	files, err := filepath.Glob(filepath.Join(top, pattern))
	if err != nil || len(files) == 0 {
		return ""
	}
	return files[len(files)-1]
}
