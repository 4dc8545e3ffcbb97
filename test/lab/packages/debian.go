package packages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/godwit-cni/godwit/test/lab/cache"
)

// downloadTimeout bounds one run of apt-get on a slow line.
const downloadTimeout = 15 * time.Minute

// maxComplaints are how many lines of a program's an error has.
const maxComplaints = 3

// fill downloads the packages and unpacks them into dir.
func (s set) fill(ctx context.Context, log *slog.Logger, dir string) error {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: this machine has no %s (not Debian or Ubuntu): install what provides the equivalents of the packages %s",
				ErrMissing, tool, strings.Join(s.missingHere(), " "))
		}
	}
	debs := filepath.Join(dir, "debs")
	start := time.Now()
	log.Info("downloading packages", "missing", s.missingHere(), "atMost", s.size)
	if err := s.download(ctx, log, debs); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return fmt.Errorf("list packages: %w", err)
	}
	var unpacked []Package
	for _, f := range files {
		if err := run(ctx, "dpkg-deb", "-x", f, dir); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(f), err)
		}
		p, err := inventory(ctx, f)
		if err != nil {
			return err
		}
		unpacked = append(unpacked, p)
	}
	if err := errors.Join(writeInventory(dir, unpacked), os.RemoveAll(debs), mergeUsr(dir), alternatives(dir)); err != nil {
		return err
	}
	log.Info("packages are unpacked", "count", len(files), "dir", strings.TrimSuffix(dir, ".part"), "took", time.Since(start).Round(time.Millisecond))
	return s.verify(dir)
}

// download lets apt-get resolve and fetch what the machine lacks. It uses the machine's package lists, and lists of its own where those are
// absent or too old, so that the machine's stay as they are.
func (s set) download(ctx context.Context, log *slog.Logger, debs string) error {
	err := s.aptInstall(ctx, debs, "")
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("download packages: %w", context.Cause(ctx))
	}
	log.Info("this machine's package lists do not serve, fetching fresh ones")
	log.Debug("what apt-get said", "err", err)
	base, err := cache.Dir()
	if err != nil {
		return err
	}
	lists := filepath.Join(base, "apt-lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return fmt.Errorf("make a directory for package lists: %w", err)
	}
	if err := run(ctx, "apt-get", append(aptOptions(debs, lists), "-o", "APT::Update::Error-Mode=any", "update")...); err != nil {
		return fmt.Errorf("fetch package lists: %w: check that this machine reaches the servers in /etc/apt/sources.list*", err)
	}
	if err := s.aptInstall(ctx, debs, lists); err != nil {
		return fmt.Errorf("download packages: %w: check that the servers in /etc/apt/sources.list* have them", err)
	}
	return nil
}

func (s set) aptInstall(ctx context.Context, debs, lists string) error {
	if err := os.MkdirAll(filepath.Join(debs, "partial"), 0o755); err != nil {
		return fmt.Errorf("make a directory for packages: %w", err)
	}
	args := append(aptOptions(debs, lists), "install", "--yes", "--download-only", "--no-install-recommends")
	for _, p := range s.wanted {
		args = append(args, p.name)
	}
	return run(ctx, "apt-get", append(args, s.instead...)...)
}

// aptOptions keep apt-get away from the machine's own state.
func aptOptions(debs, lists string) []string {
	opts := []string{"-q"}
	for _, o := range []string{
		"Dir::Cache::archives=" + debs, "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=", "Debug::NoLocking=1", "APT::Sandbox::User=root",
		"Acquire::Retries=3",
	} {
		opts = append(opts, "-o", o)
	}
	if lists != "" {
		opts = append(opts, "-o", "Dir::State::lists="+lists)
	}
	return opts
}

func run(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	// Killed with this process: the next one takes over its directory. The kernel watches the thread that starts it, so it must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, complaints(string(out)))
	}
	return nil
}

// complaints are the first errors in what a program said, since the others often follow from them; its last words where it marks none.
func complaints(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	var errs []string
	for _, line := range lines {
		if strings.HasPrefix(line, "E: ") {
			errs = append(errs, line)
		}
	}
	if len(errs) == 0 {
		errs = lines[max(0, len(lines)-maxComplaints):]
	}
	return strings.Join(errs[:min(len(errs), maxComplaints)], " | ")
}

// mergeUsr moves what packages have in /bin, /sbin and /lib* below /usr, where a machine with a merged /usr has it: the tree is laid over /usr.
func mergeUsr(dir string) error {
	for _, top := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		src := filepath.Join(dir, top)
		if _, err := os.Lstat(src); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := moveTree(src, filepath.Join(dir, "usr", top)); err != nil {
			return fmt.Errorf("merge /%s into /usr: %w", top, err)
		}
		if err := os.RemoveAll(src); err != nil {
			return fmt.Errorf("merge /%s into /usr: %w", top, err)
		}
	}
	return nil
}

func moveTree(src, dst string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dst, rel), 0o755)
		}
		return os.Rename(path, filepath.Join(dst, rel))
	})
}

// alternatives makes the links that the packages' installation scripts would have made.
func alternatives(dir string) error {
	links := [][2]string{
		{"usr/sbin/ovs-vswitchd", "../lib/openvswitch-switch/ovs-vswitchd"},
		{"usr/sbin/iptables", "xtables-nft-multi"}, {"usr/sbin/iptables-save", "xtables-nft-multi"}, {"usr/sbin/iptables-restore", "xtables-nft-multi"},
		{"usr/sbin/ip6tables", "xtables-nft-multi"}, {"usr/sbin/ip6tables-save", "xtables-nft-multi"}, {"usr/sbin/ip6tables-restore", "xtables-nft-multi"},
	}
	for _, l := range links {
		at := filepath.Join(dir, l[0])
		if _, err := os.Stat(filepath.Join(filepath.Dir(at), l[1])); err != nil {
			continue // the package is installed on the machine, or puts the program in place itself
		}
		if err := os.Symlink(l[1], at); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("link %s: %w", l[0], err)
		}
	}
	return nil
}

// verify says which programs the unpacked tree still lacks.
func (s set) verify(dir string) error {
	r, err := Open(dir)
	if err != nil {
		return err
	}
	var lacking []string
	for _, p := range s.wanted {
		_, err := r.Program(p.program)
		if p.program == "" && find(dir, p.file) == "" && !p.here() || p.program != "" && err != nil {
			lacking = append(lacking, fmt.Sprintf("%s (of package %s)", p.program+p.file, p.name))
		}
	}
	if len(lacking) > 0 {
		return fmt.Errorf("%w after unpacking all packages: %s: install them on this machine", ErrMissing, strings.Join(lacking, ", "))
	}
	return nil
}
