package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/cgroup"
)

// minFree is the space in bytes that a new lab needs in its directory: images on each node, and logs.
const minFree = 2 << 30

// preflight reports everything that this machine lacks, at once.
func preflight(dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("godwit-lab makes namespaces and mounts: run it as root, for example with sudo")
	}
	var errs []error
	for _, d := range []string{"bin", "sbin", "lib"} {
		if _, err := os.Readlink("/" + d); err != nil {
			errs = append(errs, fmt.Errorf("/%s is no link into /usr: the lab needs a distribution with a merged /usr", d))
		}
	}
	if _, err := exec.LookPath("go"); err != nil {
		errs = append(errs, fmt.Errorf("go: %w: install Go 1.26 or newer", err))
	}
	for _, ns := range []string{"net", "mnt", "pid", "uts", "ipc", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			errs = append(errs, fmt.Errorf("the kernel has no %s namespaces", ns))
		}
	}
	if fs, err := os.ReadFile("/proc/filesystems"); err == nil && !strings.Contains(string(fs), "\toverlay\n") && !moduleExists("overlay") {
		errs = append(errs, errors.New("the kernel has no overlayfs"))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil && !kernelDatapath() {
		errs = append(errs, fmt.Errorf("%w: without a kernel module openvswitch, OVS needs the kernel's TUN device", err))
	}
	errs = append(errs, rootMount(), controllers(), space(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("this machine cannot run a lab:\n%w", err)
	}
	return nil
}

// rootMount checks what pivot_root asks of the root directory, which machines leave for their own.
func rootMount() error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, 0, &st); err != nil {
		return fmt.Errorf("look at the root directory: %w", err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return errors.New("this is a chroot whose root directory is no mount point: machines could not change their root: mount --bind DIR DIR before chroot DIR")
	}
	return nil
}

func moduleExists(name string) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	found, _ := filepath.Glob("/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/kernel/fs/*/" + name + ".ko*")
	return len(found) > 0
}

// controllers checks those that a kubelet does not start without.
func controllers() error {
	v2, err := cgroup.V2()
	if err != nil {
		return err
	}
	var have string
	if v2 {
		b, err := os.ReadFile(filepath.Join(cgroup.Root, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("list the cgroup controllers: %w", err)
		}
		have = strings.ReplaceAll(string(b), " ", ",")
	} else {
		hs, err := cgroup.Hierarchies()
		if err != nil {
			return err
		}
		have = strings.Join(hs, ",")
	}
	var lacking []string
	for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !strings.Contains(","+strings.TrimSpace(have)+",", ","+c+",") {
			lacking = append(lacking, c)
		}
	}
	if len(lacking) > 0 {
		return fmt.Errorf("cgroup controllers %v are not available below %s: enable them on the kernel's command line", lacking, cgroup.Root)
	}
	return nil
}

func space(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if errors.Is(err, unix.ENOENT) && dir != "/" {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at the file system of %s: %w", dir, err)
		}
		if free := int64(st.Bavail) * st.Bsize; free < minFree { //nolint:gosec // no file system has 2^63 blocks
			return fmt.Errorf("%s has %d MB free: want %d: set %s to a directory with more", dir, free>>20, minFree>>20, dirVariable)
		}
		return nil
	}
}
