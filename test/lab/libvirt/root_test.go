package libvirt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/hypervisor"
)

// What this program is in the processes that it starts itself as, by its first argument. The second is a spec.
const (
	roleWorld    = "libvirt-world"
	roleLauncher = "libvirt-launcher"
)

// spec says what a launcher is made of. Its paths are the machine's.
type spec struct {
	// Usr are directories that are laid over /usr, the first at the top.
	Usr []string
	// User is who libvirt runs as, 0 for root.
	User int
	// Name is the launcher's, and the name of its host.
	Name string
}

// names are those of the two launchers.
var names = [...]string{"a", "b"}

// other is the name of the other launcher.
func other(name string) string {
	if name == names[0] {
		return names[1]
	}
	return names[0]
}

// In the world: top is a directory that every machine has and that packages are not in, shared what both launchers have as inShared.
const (
	top      = "/run"
	shared   = top + "/shared"
	inShared = "/shared"
)

// Sockets of libvirt in its directory. Both launchers see the other's directory as peer, as KubeVirt's see each other through its proxies.
const (
	runtimeDir = "/run/libvirt"
	monitorDir = "/run/agent"
	peer       = "/peer"
)

// bootImage is the disk from which the VM starts, migrationSocket where QEMU waits for it on the target.
const (
	bootImage       = inShared + "/boot.img"
	migrationSocket = inShared + "/migration.sock"
)

// launcher is the pod that the agent knows a launcher by; with monitor it has QEMU's monitor alone.
func launcher(name string) hypervisor.Launcher {
	return hypervisor.Launcher{UID: "5e3b8a70-0f4e-4b6c-9f8e-2f6f2f1d9a1" + name}
}

func monitor(name string) hypervisor.Launcher {
	return hypervisor.Launcher{UID: "c0ffee70-0f4e-4b6c-9f8e-2f6f2f1d9a1" + name}
}

// volume is a launcher's volume that KubeVirt names libvirt-runtime, below shared.
func volume(l hypervisor.Launcher) string {
	return filepath.Join("pods", l.UID, "volumes/kubernetes.io~empty-dir/libvirt-runtime")
}

func TestMain(m *testing.M) {
	roles := map[string]func(spec) error{roleWorld: runWorld, roleLauncher: runLauncher}
	if len(os.Args) != 3 || roles[os.Args[1]] == nil {
		os.Exit(m.Run())
	}
	var s spec
	err := json.Unmarshal([]byte(os.Args[2]), &s)
	if err == nil {
		err = roles[os.Args[1]](s)
	}
	fmt.Fprintln(os.Stderr, os.Args[1], s.Name, "has ended:", err)
	os.Exit(1)
}

// runWorld is pid 1 of namespaces of its own: it starts both launchers, and is the parent of every QEMU, which libvirt waits for somebody to bury. All that there is goes with it.
func runWorld(s spec) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := errors.Join(
		mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), mount("proc", "/proc", "proc", 0, ""), mount("tmpfs", top, "tmpfs", 0, "mode=755"),
	); err != nil {
		return err
	}
	if err := shareDirs(s.User); err != nil {
		return err
	}
	for _, s.Name = range names {
		arg, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if _, err := os.StartProcess(self, []string{self, roleLauncher, string(arg)}, &os.ProcAttr{
			Files: []*os.File{nil, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS},
		}); err != nil {
			return fmt.Errorf("start launcher %s: %w", s.Name, err)
		}
	}
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for launchers: %w", err)
		}
	}
}

// shareDirs makes what both launchers and the test see. The links are for programs that connect to a socket: a path of one has its bound.
func shareDirs(user int) error {
	for _, name := range names {
		for _, dir := range []string{volume(launcher(name)), volume(monitor(name)), "log-" + name} {
			if err := errors.Join(os.MkdirAll(filepath.Join(shared, dir), 0o755), os.Chown(filepath.Join(shared, dir), user, user)); err != nil {
				return err
			}
		}
		if err := os.Symlink(volume(launcher(name)), filepath.Join(shared, name)); err != nil {
			return err
		}
	}
	disk := make([]byte, 1440<<10)
	copy(disk, bootSector())
	return errors.Join(os.Chown(shared, user, user), os.WriteFile(filepath.Join(shared, filepath.Base(bootImage)), disk, 0o644))
}

// runLauncher becomes libvirt in a root directory of its own.
func runLauncher(s spec) error {
	root := filepath.Join(top, "root-"+s.Name)
	if err := errors.Join(os.Mkdir(root, 0o755), mount("tmpfs", root, "tmpfs", 0, "mode=755")); err != nil {
		return err
	}
	for _, step := range []func(string, spec) error{systemTree, privateTree, sharedTree, configure} {
		if err := step(root, s); err != nil {
			return err
		}
	}
	// The old root lies over the new one after this, until it is unmounted: pivot_root(2), "pivot_root(".", ".")".
	if err := errors.Join(os.Chdir(root), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), os.Chdir("/"), unix.Sethostname([]byte(s.Name))); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(s.User), syscall.Setuid(s.User)); err != nil {
		return fmt.Errorf("become user %d: %w", s.User, err)
	}
	program := "/usr/sbin/libvirtd"
	if _, err := os.Stat("/usr/sbin/virtqemud"); err == nil {
		program = "/usr/sbin/virtqemud"
	}
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C", "XDG_RUNTIME_DIR=/run", "XDG_CONFIG_HOME=/etc", "XDG_CACHE_HOME=/log", "XDG_DATA_HOME=/var/lib"}
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, []string{program, "-f", daemonConfig}, env))
}

// systemTree is /usr, with the packages over it, and the links into it.
func systemTree(root string, s spec) error {
	usr := filepath.Join(root, "usr")
	if err := errors.Join(os.Mkdir(usr, 0o755), mount("overlay", usr, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(append(s.Usr, "/usr"), ":"))); err != nil {
		return err
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		to, err := os.Readlink("/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, os.Symlink(to, filepath.Join(root, name))); err != nil {
			return fmt.Errorf("link /%s: %w: this needs a machine with a merged /usr", name, err)
		}
	}
	return nil
}

// privateTree is what libvirt writes, and the kernel's files.
func privateTree(root string, s spec) error {
	for _, m := range []struct {
		dir, source, kind, options string
		flags                      uintptr
	}{
		{"/run", "tmpfs", "tmpfs", "mode=755", 0}, {"/tmp", "tmpfs", "tmpfs", "mode=1777", 0}, {"/var", "tmpfs", "tmpfs", "mode=755", 0}, {"/etc", "tmpfs", "tmpfs", "mode=755", 0},
		{"/proc", "proc", "proc", "", 0}, {"/sys", "sysfs", "sysfs", "", unix.MS_RDONLY}, {"/dev", "/dev", "", "", unix.MS_BIND | unix.MS_REC}, {"/dev/shm", "tmpfs", "tmpfs", "mode=1777", 0},
	} {
		at := filepath.Join(root, m.dir)
		if err := errors.Join(os.MkdirAll(at, 0o755), mount(m.source, at, m.kind, m.flags, m.options)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"run", "var/lib", "var/cache/libvirt", "var/log", "etc/libvirt"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, dir), 0o755), os.Chown(filepath.Join(root, dir), s.User, s.User)); err != nil {
			return err
		}
	}
	return os.Symlink("/run", filepath.Join(root, "var/run"))
}

// sharedTree is what a launcher has in common with the other one, or with the test.
func sharedTree(root string, s spec) error {
	for to, from := range map[string]string{
		inShared: "", runtimeDir: volume(launcher(s.Name)), monitorDir: volume(monitor(s.Name)), peer: volume(launcher(other(s.Name))), "/log": "log-" + s.Name, "/var/log/libvirt": "log-" + s.Name,
	} {
		at := filepath.Join(root, to)
		if err := errors.Join(os.MkdirAll(at, 0o755), mount(filepath.Join(shared, from), at, "", unix.MS_BIND, "")); err != nil {
			return err
		}
	}
	return nil
}

const daemonConfig = "/etc/libvirt/daemon.conf"

// configure writes libvirt's settings, and the users that distributions' libvirt looks for before it has read them. As in KubeVirt's launchers neither control groups nor namespaces nor labels are to be made
// for QEMU: the pod has them.
func configure(root string, s spec) error {
	for name, text := range map[string]string{
		"/etc/hostname":             s.Name + "\n",
		"/etc/hosts":                "127.0.0.1 localhost " + s.Name + "\n",
		"/etc/passwd":               "root:x:0:0::/root:/bin/sh\nqemu:x:107:107::/tmp:/bin/sh\nlibvirt-qemu:x:64055:64055::/tmp:/bin/sh\ntss:x:64056:64056::/tmp:/bin/sh\n",
		"/etc/group":                "root:x:0:\nqemu:x:107:\nlibvirt-qemu:x:64055:\nkvm:x:64057:\ntss:x:64056:\n",
		"/etc/nsswitch.conf":        "passwd: files\ngroup: files\nhosts: files\n",
		daemonConfig:                "unix_sock_rw_perms = \"0700\"\nlog_outputs = \"3:stderr\"\nhost_uuid = \"4d3b8a70-0f4e-4b6c-9f8e-2f6f2f1d9a1" + s.Name + "\"\n",
		"/etc/libvirt/qemu.conf":    "security_driver = \"none\"\n" + fmt.Sprintf("user = \"+%[1]d\"\ngroup = \"+%[1]d\"\n", s.User) + "cgroup_controllers = []\nnamespaces = []\nremember_owner = 0\ndynamic_ownership = 0\nstdio_handler = \"file\"\n",
		"/etc/libvirt/libvirt.conf": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s %s at %s (%s): %w", kind, source, target, options, err)
	}
	return nil
}

// bootSector is the VM's whole program: at every tick of its clock, 18 in a second, it writes to each page from 64 to 576 KiB, half a MiB. Its memory is never copied at a MiB in a second, and is at once without
// that bound: a migration ends when the test wants it to.
func bootSector() []byte {
	b := make([]byte, 512)
	copy(b, []byte{
		0xfb,             // again: sti
		0xb8, 0x00, 0x10, // mov ax, 0x1000
		0x8e, 0xc0, // segment: mov es, ax
		0x31, 0xff, // xor di, di
		0x26, 0xff, 0x05, // page: inc word [es:di]
		0x81, 0xc7, 0x00, 0x10, // add di, 0x1000
		0x75, 0xf7, // jnz page
		0x05, 0x00, 0x10, // add ax, 0x1000
		0x3d, 0x00, 0x90, // cmp ax, 0x9000
		0x75, 0xeb, // jne segment
		0xf4,       // hlt
		0xeb, 0xe4, // jmp again
	})
	b[510], b[511] = 0x55, 0xaa
	return b
}
