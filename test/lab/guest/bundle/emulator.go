package bundle

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/godwit-cni/godwit/test/lab/packages"
)

// qemu is the emulator; accelerator the module of it that does the emulation. Debian and its kin have it where the machine's libraries are.
const (
	qemu        = "qemu-system-x86_64"
	accelerator = "accel-tcg-x86_64.so"
)

// firmware are the files that QEMU loads, wherever distributions have them.
var (
	firmware     = []string{"bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"}
	firmwareDirs = []string{"usr/share/qemu", "usr/share/seabios"}
)

// Emulator is QEMU with what it loads, and a kernel to boot in it, as files of this machine.
type Emulator struct {
	// QEMU is the program; Firmware its firmware; Modules the directory of its modules.
	QEMU     string
	Firmware []string
	Modules  string
	// Kernel is one that boots in it.
	Kernel packages.Kernel

	root *packages.Root
}

// FindEmulator finds everything in the tree of packages.EnsureVM, or on the machine.
func FindEmulator(root *packages.Root) (*Emulator, error) {
	e := &Emulator{root: root}
	var err error
	if e.QEMU, err = root.Program(qemu); err != nil {
		return nil, err
	}
	for _, f := range firmware {
		path, err := find(root, f, firmwareDirs)
		if err != nil {
			return nil, err
		}
		e.Firmware = append(e.Firmware, path)
	}
	module, err := find(root, accelerator, []string{"usr/lib/x86_64-linux-gnu/qemu", "usr/lib/qemu"})
	if err != nil {
		return nil, err
	}
	e.Modules = filepath.Dir(module)
	if e.Kernel, err = root.Kernel(); err != nil {
		return nil, err
	}
	return e, nil
}

func find(root *packages.Root, name string, dirs []string) (path string, err error) {
	for _, d := range dirs {
		if path, err = root.Path(filepath.Join(d, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s in %v: %w", name, dirs, err)
}

// Command is QEMU as a plain process of this machine, with arguments in addition to where its firmware is.
func (e *Emulator) Command(ctx context.Context, args ...string) *exec.Cmd {
	for _, d := range firmwareOf(e.Firmware) {
		args = append(args, "-L", d)
	}
	cmd := exec.CommandContext(ctx, e.QEMU, args...)
	cmd.Env = append(append(os.Environ(), e.root.Environ()...), "QEMU_MODULE_DIR="+e.Modules)
	return cmd
}

// firmwareOf are the directories of files, each once.
func firmwareOf(files []string) []string {
	var dirs []string
	for _, f := range files {
		if d := filepath.Dir(f); !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}
