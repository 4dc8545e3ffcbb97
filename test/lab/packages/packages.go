// Package packages gives the lab the programs of a Linux distribution that it runs (OVN, Open vSwitch, containerd, …) without installing
// anything: the .deb files that this machine lacks are unpacked into a directory of the cache. A package that the machine has is used from
// where it is.
package packages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/cache"
)

// layout is part of an entry's key; raise it when the unpacking changes.
const layout = "2"

// ErrMissing says that the machine lacks programs and that they cannot be downloaded either.
var ErrMissing = errors.New("programs are missing")

// want is a Debian package that the lab needs.
type want struct {
	name string
	// program is a program of it: a machine that has the program needs no download.
	program string
	// file is a pattern of a file of it, below the root directory, where it has no program.
	file string
}

// set is a tree of packages that are downloaded and unpacked together.
type set struct {
	// kind is the directory of such trees in the cache, size about what is downloaded at most.
	kind, size string
	wanted     []want
	// instead are packages that satisfy dependencies of wanted ones with less than apt would choose.
	instead []string
}

// cluster is what the lab's machines run. The order is that of the command line.
func cluster() set {
	return set{kind: "packages", size: "40 MB", wanted: []want{
		{name: "ovn-central", program: "ovn-northd"},
		{name: "ovn-host", program: "ovn-controller"},
		{name: "openvswitch-switch", program: "ovs-vswitchd"},
		{name: "openvswitch-common", program: "ovs-appctl"},
		{name: "containerd", program: "containerd"},
		{name: "runc", program: "runc"},
		{name: "nftables", program: "nft"},
		{name: "iptables", program: "iptables"},
		{name: "iperf3", program: "iperf3"},
		{name: "busybox-static", program: "busybox"},
		{name: "conntrack", program: "conntrack"},
		{name: "ethtool", program: "ethtool"},
		{name: "tcpdump", program: "tcpdump"},
		{name: "iproute2", program: "ip"},
	}}
}

// Root is a tree of unpacked packages, laid out with a merged /usr. Its methods are safe for concurrent use.
type Root struct {
	dir string
	// libs are directories of shared libraries in the tree.
	libs []string
}

// Ensure returns the tree of what the lab's machines run, downloading and unpacking what is not cached yet (about 40 MB). It needs no privileges.
func Ensure(ctx context.Context, log *slog.Logger) (*Root, error) { return cluster().ensure(ctx, log) }

func (s set) ensure(ctx context.Context, log *slog.Logger) (*Root, error) {
	dir, err := cache.Entry(ctx, s.kind, s.key(), func(ctx context.Context, dir string) error {
		if missing := s.missingHere(); len(missing) == 0 {
			log.Info("all programs are installed on this machine", "set", s.kind)
			return nil
		}
		return s.fill(ctx, log, dir)
	})
	if err != nil {
		return nil, fmt.Errorf("prepare packages: %w", err)
	}
	return Open(dir)
}

// key changes with everything that an entry depends on: a tree made for one release does not fit the libraries of another.
func (s set) key() string {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, layout, runtime.GOARCH)
	for _, p := range s.wanted {
		_, _ = fmt.Fprintln(h, p.name)
	}
	release, err := os.ReadFile("/etc/os-release")
	if err == nil {
		_, _ = h.Write(release)
	}
	// A package that was installed when the tree was made may be gone now, and the tree then lacks it.
	_, _ = fmt.Fprintln(h, s.missingHere())
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// missingHere lists the packages that are not installed on the machine.
func (s set) missingHere() []string {
	var missing []string
	for _, p := range s.wanted {
		if !p.here() {
			missing = append(missing, p.name)
		}
	}
	return missing
}

// Open returns the tree at a directory that was Dir of another process's Root.
func Open(dir string) (*Root, error) {
	r := &Root{dir: dir}
	libs, err := filepath.Glob(filepath.Join(dir, "usr/lib/*-linux-gnu*"))
	if err != nil {
		return nil, fmt.Errorf("list libraries: %w", err)
	}
	r.libs = libs
	return r, nil
}

// Dir is the tree's directory. Everything that it holds is below usr, etc or boot.
func (r *Root) Dir() string { return r.dir }

// Libraries are the tree's directories of shared libraries, for a dynamic loader.
func (r *Root) Libraries() []string { return r.libs }

// Path is where the file is that a system with all packages installed has at /name: in the tree, or on the machine.
func (r *Root) Path(name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	in := filepath.Join(r.dir, name)
	if _, err := os.Lstat(in); err == nil {
		return in, nil
	}
	host := "/" + name
	if _, err := os.Stat(host); err != nil {
		return "", fmt.Errorf("find %s: %w: neither the unpacked packages in %s nor this machine have it", host, fs.ErrNotExist, r.dir)
	}
	return host, nil
}

// programDirs are where programs are on a system with a merged /usr.
var programDirs = []string{"usr/sbin", "usr/bin"}

// Program is the path of a program: in the tree, or on the machine.
func (r *Root) Program(name string) (string, error) {
	for _, d := range programDirs {
		p := filepath.Join(r.dir, d, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	if p := lookHost(name); p != "" {
		return p, nil
	}
	return "", fmt.Errorf("find program %s: %w: neither the unpacked packages in %s nor this machine have it", name, fs.ErrNotExist, r.dir)
}

// Command is exec.CommandContext for a program of the tree, which finds its libraries there and the tree's other programs in its PATH. A program that
// does not exist is an error of the command when it is started.
func (r *Root) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	program, err := r.Program(name)
	if err != nil {
		program = name
	}
	cmd := exec.CommandContext(ctx, program, args...)
	if err != nil {
		cmd.Err = err
	}
	cmd.Env = append(os.Environ(), r.Environ()...)
	return cmd
}

// Environ are the environment variables with which programs of the tree run, in addition to the process's own.
func (r *Root) Environ() []string {
	path := make([]string, 0, len(programDirs)+1)
	for _, d := range programDirs {
		path = append(path, filepath.Join(r.dir, d))
	}
	env := []string{
		"PATH=" + strings.Join(append(path, os.Getenv("PATH"), hostPath), ":"),
		"LD_LIBRARY_PATH=" + strings.Join(r.libs, ":"),
	}
	for _, lib := range r.libs {
		if _, err := os.Stat(filepath.Join(lib, "xtables")); err == nil {
			env = append(env, "XTABLES_LIBDIR="+filepath.Join(lib, "xtables"))
		}
	}
	// The daemons' compiled-in paths of schemas.
	for _, v := range []struct{ name, dir string }{{"OVS_PKGDATADIR", "usr/share/openvswitch"}, {"OVN_PKGDATADIR", "usr/share/ovn"}} {
		if _, err := os.Stat(filepath.Join(r.dir, v.dir)); err == nil {
			env = append(env, v.name+"="+filepath.Join(r.dir, v.dir))
		}
	}
	return env
}

// here says whether the package is installed on the machine.
func (p want) here() bool {
	if p.program != "" {
		return lookHost(p.program) != ""
	}
	return find("/", p.file) != ""
}

// hostPath is where programs of the system are; a user's PATH often lacks the sbin directories.
const hostPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// lookHost is the path of a program that is installed on the machine, or empty.
func lookHost(name string) string {
	for _, d := range strings.Split(hostPath, ":") {
		p := filepath.Join(d, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}
