package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/cgroup"
)

// inner is where a node finds what the lab gives it.
const (
	inner           = "/.lab"
	innerKubernetes = inner + "/kubernetes"
	innerCNI        = inner + "/cni"
	innerImages     = inner + "/images"
	innerLogs       = inner + "/logs"
	innerDir        = inner + "/machine"
)

// sysctls are what a kubelet insists on. They are the whole machine's, not a namespace's, so the node shows files with these values in their place.
var sysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// foreign are directories of the machine's /etc that a node must not take for its own.
var foreign = []string{"cni", "kubernetes", "openvswitch", "ovn", "containerd", "default/ovn-host", "default/openvswitch-switch"}

// enterRoot makes a root directory for the node out of the host's programs, the unpacked packages and the node's own directories, and makes it this
// process's root. Nothing of the host's file system can be changed from there but /dev.
func enterRoot(spec *Spec) error {
	root := filepath.Join(spec.Dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("make the node's root: %w", err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the node's root: %w", err)
	}
	steps := []func(root string, spec *Spec) error{systemTree, runtimeTree, privateTree, labTree, kernelTree}
	for _, step := range steps {
		if err := step(root, spec); err != nil {
			return err
		}
	}
	old := filepath.Join(root, ".old")
	if err := os.Mkdir(old, 0o700); err != nil {
		return fmt.Errorf("make a place for the old root: %w", err)
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := errors.Join(os.Chdir("/"), unix.Unmount("/.old", unix.MNT_DETACH), os.Remove("/.old")); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	// Pods mount with propagation, Godwit's agent for one.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the node's mounts with its pods: %w", err)
	}
	return nil
}

// systemTree is /usr, with the packages over it, and the links into it.
func systemTree(root string, spec *Spec) error {
	lower := "/usr"
	if packages := filepath.Join(spec.Packages, "usr"); isDir(packages) {
		lower = packages + ":/usr"
	}
	if err := overlay(filepath.Join(root, "usr"), "lowerdir="+lower); err != nil {
		return err
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		to, err := os.Readlink("/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("/%s is no link into /usr: %w: the lab needs a machine with a merged /usr", name, err)
		}
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			return fmt.Errorf("link /%s: %w", name, err)
		}
	}
	return nil
}

// runtimeTree is another containerd in place of the packages', if the node has one. Files are put over files: one overlay more may be more than the kernel stacks.
func runtimeTree(root string, spec *Spec) error {
	if spec.Containerd == "" {
		return nil
	}
	programs, err := os.ReadDir(spec.Containerd)
	if err != nil {
		return fmt.Errorf("list the programs of containerd: %w", err)
	}
	for _, p := range programs {
		shown := filepath.Join(root, "usr/bin", p.Name())
		if err := unix.Mount(filepath.Join(spec.Containerd, p.Name()), shown, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put another %s over the packages' %s: %w", p.Name(), shown, err)
		}
	}
	return nil
}

// privateTree is what the node writes: /etc over the host's, /var and /opt of its own, and what does not survive a reboot.
func privateTree(root string, spec *Spec) error {
	upper, work := filepath.Join(spec.Dir, "etc"), filepath.Join(spec.Dir, "etc.work")
	first := !isDir(upper)
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return fmt.Errorf("make the node's directories: %w", err)
	}
	etc := filepath.Join(root, "etc")
	if err := overlay(etc, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	if first {
		for _, name := range foreign {
			if err := os.RemoveAll(filepath.Join(etc, name)); err != nil {
				return fmt.Errorf("hide the host's /etc/%s: %w", name, err)
			}
		}
	}
	for _, name := range []string{"var", "opt"} {
		if err := bind(filepath.Join(spec.Dir, name), filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for name, mode := range map[string]string{"run": "755", "tmp": "1777", "root": "700"} {
		if err := mountAt(filepath.Join(root, name), "tmpfs", "tmpfs", "mode="+mode); err != nil {
			return err
		}
	}
	if spec.OVNPods { // so that the sockets of the databases are the host's as well
		if err := bind(OVNDir(spec.Dir), filepath.Join(root, "run/ovn")); err != nil {
			return err
		}
	}
	for _, name := range []string{"var/lib", "var/log", "var/tmp", "var/cache", "opt/cni/bin", "etc/cni/net.d", "run/netns", "home", "mnt", "srv"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return fmt.Errorf("make the node's directories: %w", err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link /var/run: %w", err)
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost %[1]s\n::1 localhost %[1]s\n", spec.Name)
	return errors.Join(os.WriteFile(filepath.Join(etc, "hostname"), []byte(spec.Name+"\n"), 0o644), os.WriteFile(filepath.Join(etc, "hosts"), []byte(hosts), 0o644))
}

// labTree is what the lab puts into the node.
func labTree(root string, spec *Spec) error {
	for from, to := range map[string]string{
		spec.Kubernetes: innerKubernetes, spec.CNI: innerCNI, spec.Images: innerImages, spec.Logs: innerLogs, spec.Dir: innerDir,
	} {
		if err := bind(from, filepath.Join(root, to)); err != nil {
			return err
		}
	}
	return nil
}

// kernelTree is /dev, /proc and /sys.
func kernelTree(root string, spec *Spec) error {
	// With what is mounted in it, terminals above all.
	if err := mountOver("/dev", filepath.Join(root, "dev"), unix.MS_BIND|unix.MS_REC); err != nil {
		return err
	}
	if err := mountAt(filepath.Join(root, "dev/shm"), "tmpfs", "tmpfs", "mode=1777"); err != nil {
		return err
	}
	proc, sys := filepath.Join(root, "proc"), filepath.Join(root, "sys")
	if err := errors.Join(mountAt(proc, "proc", "proc", ""), mountAt(sys, "sysfs", "sysfs", "")); err != nil {
		return err
	}
	if isDir(filepath.Join(sys, "fs/bpf")) {
		if err := mountAt(filepath.Join(sys, "fs/bpf"), "bpf", "bpf", ""); err != nil {
			return err
		}
	}
	if err := cgroup.Mount(filepath.Join(sys, "fs/cgroup"), spec.Hierarchies); err != nil {
		return err
	}
	for name, value := range sysctls {
		shown := filepath.Join(root, inner, "sysctl", strings.ReplaceAll(name, "/", "."))
		if err := errors.Join(os.MkdirAll(filepath.Dir(shown), 0o755), os.WriteFile(shown, []byte(value+"\n"), 0o644)); err != nil {
			return fmt.Errorf("make a file for sysctl %s: %w", name, err)
		}
		if err := unix.Mount(shown, filepath.Join(proc, "sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put a file over sysctl %s: %w", name, err)
		}
	}
	return nil
}

func overlay(target, options string) error {
	if err := mountAt(target, "overlay", "overlay", options); err != nil {
		return fmt.Errorf("%w: the directories must be on a file system that overlayfs can use, such as ext4, xfs, btrfs or tmpfs", err)
	}
	return nil
}

func mountAt(target, source, fstype, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("make a mount point: %w", err)
	}
	if err := unix.Mount(source, target, fstype, 0, options); err != nil {
		return fmt.Errorf("mount %s at %s (%s): %w", fstype, target, options, err)
	}
	return nil
}

// bind shows a directory in another place, without what is mounted in it: the node's root is in the node's directory.
func bind(from, to string) error { return mountOver(from, to, unix.MS_BIND) }

func mountOver(from, to string, flags uintptr) error {
	if err := errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(to, 0o755)); err != nil {
		return fmt.Errorf("make a mount point: %w", err)
	}
	if err := unix.Mount(from, to, "", flags, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
