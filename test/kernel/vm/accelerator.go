package vm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/test/lab/cache"
	"github.com/godwit-cni/godwit/test/lab/guest/bundle"
	"github.com/godwit-cni/godwit/test/lab/guest/initramfs"
	"github.com/godwit-cni/godwit/test/lab/image"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

// kvmTimeout is how long a kernel without any devices may take to boot with KVM, which is less than a second where KVM works. Machines that are themselves virtual
// may have a /dev/kvm in which a kernel never gets anywhere (seen).
const kvmTimeout = 10 * time.Second

// accelerator is kvm where a kernel boots in it, else tcg. What was found is remembered for this machine.
func accelerator(ctx context.Context, log *slog.Logger, e *bundle.Emulator) (string, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		log.Info("no KVM", "error", err)
		return tcg, nil
	}
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("close /dev/kvm: %w", err)
	}
	dir, err := cache.Entry(ctx, "accelerators", machineKey(e), func(ctx context.Context, dir string) error {
		found := kvm
		if err := tryKVM(ctx, e, dir); err != nil {
			if ctx.Err() != nil {
				return err
			}
			log.Warn("KVM does not work on this machine: virtual machines are emulated", "error", err)
			found = tcg
		}
		return os.WriteFile(filepath.Join(dir, "accelerator"), []byte(found), 0o644)
	})
	if err != nil {
		return "", fmt.Errorf("find out whether KVM works: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "accelerator"))
	if err != nil {
		return "", fmt.Errorf("find out whether KVM works: %w", err)
	}
	return string(b), nil
}

// machineKey changes with what KVM's working depends on: processor, kernel, emulator.
func machineKey(e *bundle.Emulator) string {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, e.QEMU, e.Kernel.Image)
	for _, f := range []string{"/proc/version", "/proc/cpuinfo"} {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // no reason to do without
		}
		for line := range strings.Lines(string(b)) {
			if !strings.Contains(line, "MHz") && !strings.HasPrefix(line, "bogomips") {
				_, _ = h.Write([]byte(line))
			}
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:16]
}

// tryKVM boots a kernel as far as it gets without a first process.
func tryKVM(ctx context.Context, e *bundle.Emulator, dir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, kvmTimeout)
	defer cancel()
	disk, serial := filepath.Join(dir, "disk"), filepath.Join(dir, "console")
	defer func() { err = errors.Join(err, remove(disk), remove(serial)) }()
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	system := initramfs.System{Kernel: e.Kernel, Files: []image.File{{Path: "/unused", Content: []byte("\n")}}}
	if err := errors.Join(system.Write(f), f.Close()); err != nil {
		return err
	}
	ns, err := netns.New()
	if err != nil {
		return err
	}
	defer ns.Close()
	// A kernel without a first process says so, and its panic resets the machine, which QEMU is told to take for its end.
	q, err := startQEMU(ctx, ns, e, hardware{accelerator: kvm, memoryMiB: 256, disk: disk, serial: serial})
	if err != nil {
		return err
	}
	defer q.kill()
	select {
	case <-q.ended:
	case <-ctx.Done():
		return fmt.Errorf("a kernel does not boot within %s", kvmTimeout)
	}
	if said := tail(serial, 100); !strings.Contains(said, "No working init found") {
		return fmt.Errorf("a kernel does not boot: QEMU ended with %w, its console said last: %s", q.exit, said)
	}
	return nil
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
