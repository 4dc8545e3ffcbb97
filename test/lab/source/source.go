// Package source finds and builds the checkout that a lab is run from.
package source

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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

const (
	module      = "module github.com/godwit-cni/godwit"
	dirVariable = "GODWIT_SOURCE"
)

// progressInterval is how often a long build says that it is alive.
const progressInterval = 10 * time.Second

// maxComplaints are how many lines of go build's an error has.
const maxComplaints = 10

// endTimeout is how long go build may take to clean up when it is interrupted; it takes a second.
const endTimeout = 20 * time.Second

// Dir is the top directory of the checkout that holds the working directory, or GODWIT_SOURCE.
func Dir() (string, error) {
	if dir := os.Getenv(dirVariable); dir != "" {
		if !isModule(dir) {
			return "", fmt.Errorf("%s=%s is not a checkout of Godwit: want its top directory", dirVariable, dir)
		}
		return filepath.Abs(dir)
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if isModule(dir) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of Godwit: change into one or set %s", wd, dirVariable)
		}
	}
}

func isModule(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	first, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(first) == module
}

// Programs builds programs of the checkout, packages relative to its top, and returns their directory. Until release is called nobody else
// changes them. They are kept: go build links only what has changed.
func Programs(ctx context.Context, log *slog.Logger, packages ...string) (dir string, release func(), err error) {
	return Versioned(ctx, log, "", packages...)
}

// Versioned is Programs with the version that the programs call themselves by; empty for what their source says.
func Versioned(ctx context.Context, log *slog.Logger, version string, packages ...string) (dir string, release func(), err error) {
	top, err := Dir()
	if err != nil {
		return "", nil, err
	}
	dir, release, err = cache.Scratch(ctx, "programs", fmt.Sprintf("%x", sha256.Sum256([]byte(top)))[:16])
	if err != nil {
		return "", nil, err
	}
	flags := "-s -w"
	if version != "" {
		flags += " -X main.version=" + version
	}
	if err := (Build{Dir: top, Out: dir, LDFlags: flags, Packages: packages}).Run(ctx, log); err != nil {
		release()
		return "", nil, err
	}
	return dir, release, nil
}

// Build is one run of go build for static programs.
type Build struct {
	// Dir is the module's directory.
	Dir string
	// Out is an existing directory that gets one file per package, named for the package's last element.
	Out string
	// LDFlags are passed on, empty for none.
	LDFlags string
	// Packages are import paths, or paths relative to Dir that begin with a dot.
	Packages []string
}

// Run builds. Cold builds of large programs take minutes and are reported at intervals.
func (b Build) Run(ctx context.Context, log *slog.Logger) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return fmt.Errorf("build %s: %w: install Go 1.26 or newer and put it in PATH", b.Packages[0], err)
	}
	// Without -buildvcs=false the build of a checkout that is another user's fails: git, which go build asks, does not answer there.
	args := []string{"build", "-v", "-trimpath", "-buildvcs=false"}
	if b.LDFlags != "" {
		args = append(args, "-ldflags", b.LDFlags)
	}
	args = append(append(args, "-o", b.Out+"/"), b.Packages...)
	cmd := exec.CommandContext(ctx, goTool, args...)
	cmd.Dir = b.Dir
	// go build leaves its temporary files, up to gigabytes, when it is interrupted. Here the next build finds them, whatever becomes of this process.
	tmp := filepath.Join(b.Out, ".build")
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700)); err != nil {
		return fmt.Errorf("build in %s: %w", b.Dir, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	// The build does not depend on the caller's flags: the build cache is shared by all that build with these.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOTMPDIR="+tmp)
	// It is asked to end with its compilers, which it waits for, so that nobody writes there any more.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = endTimeout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("build in %s: %w", b.Dir, err)
	}
	// Killed with this process, not left behind to write what nobody waits for. The kernel watches the thread that starts it, so it must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build in %s: %w", b.Dir, err)
	}
	complaints := follow(stderr, log, b.Packages[0])
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("go build in %s: %w", b.Dir, context.Cause(ctx))
		}
		return fmt.Errorf("go build in %s: %w: %s%s", b.Dir, err, complaints, Advice(complaints))
	}
	return nil
}

// Advice is what to do about what the go command said, on a line of its own; empty where that says it itself.
func Advice(said string) string {
	for _, word := range []string{"dial tcp", "dial udp", "proxyconnect", "TLS handshake", "i/o timeout"} {
		if strings.Contains(said, word) {
			return "\nGo's modules could not be fetched: check that this machine reaches what go env GOPROXY GOSUMDB prints"
		}
	}
	if strings.Contains(said, "no space left on device") {
		return "\nspace is needed in GODWIT_CACHE (2 GB) or in what go env GOCACHE GOMODCACHE prints (8 GB): each can be set to another directory"
	}
	return ""
}

// follow reads the compiler's output to its end: names of compiled packages, which it counts, and anything else, which it returns.
func follow(stderr io.Reader, log *slog.Logger, what string) string {
	var other []string
	compiled, start := 0, time.Now()
	last := start
	for sc := bufio.NewScanner(stderr); sc.Scan(); {
		line := sc.Text()
		if strings.ContainsAny(line, " #:") {
			other = append(other, line)
			continue
		}
		compiled++
		if time.Since(last) > progressInterval {
			last = time.Now()
			log.Info("building", "what", what, "packagesCompiled", compiled, "took", time.Since(start).Round(time.Second))
		}
	}
	if len(other) > maxComplaints {
		other = append(other[:maxComplaints], fmt.Sprintf("… and %d lines more", len(other)-maxComplaints))
	}
	return strings.Join(other, "\n")
}
