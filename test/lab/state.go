package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoLab says that a directory holds no lab.
var ErrNoLab = errors.New("no such lab")

const (
	stateFile = "state.json"
	hubName   = "hub"
	outside   = "outside"
)

// state is what is on record of a lab.
type state struct {
	Name     string `json:"name"`
	Nodes    int    `json:"nodes"`
	IPFamily string `json:"ipFamily"`
	CNI      string `json:"cni"`
	// OVN is where it runs; empty in labs that were made before there was a choice.
	OVN string `json:"ovn,omitempty"`
	// Containerd is which; empty in labs that were made before there was a choice.
	Containerd string `json:"containerd,omitempty"`
	// Plain: OVN's databases are pods without TLS.
	Plain bool `json:"plain,omitempty"`
	// Port is the local port that leads to the API server.
	Port int `json:"port"`
	// Complete is set when an Up has succeeded: from then on a failing Up repairs, and does not remove.
	Complete bool `json:"complete"`
	// Owner is the process that will remove the lab when it is done with it; zero for a lab that stays.
	Owner process `json:"owner,omitzero"`
	// Image is the digest of the Godwit image whose pods run.
	Image string `json:"image,omitempty"`
	// Machines by name: hub, node1…, outside.
	Machines map[string]*machine `json:"machines"`
}

func (s *state) ovn() string { return cmp.Or(s.OVN, OVNProcesses) }

func (s *state) containerd() string { return cmp.Or(s.Containerd, ContainerdPackage) }

// machine is what is on record of a machine. It is there before the machine is.
type machine struct {
	Cgroups []string `json:"cgroups"`
	// Process is the machine's pid 1; zero until it exists.
	Process process `json:"process"`
	// Waiting: Process has not been told to begin. It ends when who started it does.
	Waiting bool `json:"waiting,omitempty"`
	// Started is when Process was started.
	Started time.Time `json:"started,omitzero"`
	// Stopped says that the user wants it so.
	Stopped bool `json:"stopped,omitempty"`
}

// process names a process without ever meaning another one that got its number later.
type process struct {
	Pid int `json:"pid,omitempty"`
	// Start is the time of its start in clock ticks since the machine's boot; Boot is the identity of that boot.
	Start uint64 `json:"start,omitempty"`
	Boot  string `json:"boot,omitempty"`
}

// identify puts a process that runs on record.
func identify(pid int) (process, error) {
	start, _, err := procStat(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := bootID()
	return process{Pid: pid, Start: start, Boot: boot}, err
}

// alive says whether the process runs; one that has ended and was not waited for does not.
func (p process) alive() bool {
	if p.Pid == 0 {
		return false
	}
	start, running, err := procStat(p.Pid)
	boot, bootErr := bootID()
	return err == nil && bootErr == nil && running && start == p.Start && boot == p.Boot
}

// take makes the lab the calling process's if c wants it so and it is not there to stay, else nobody's. It fails while the lab is another process's, which would
// remove it under the caller's feet.
func (s *state) take(c Config) (err error) {
	if s.Owner.alive() && s.Owner.Pid != os.Getpid() {
		return fmt.Errorf("lab %s belongs to process %d, which removes it when it is done: wait for its end, or use another lab with --name", s.Name, s.Owner.Pid)
	}
	stays := len(s.Machines) > 0 && s.Owner.Pid == 0
	s.Owner = process{}
	if c.Own && !stays {
		s.Owner, err = identify(os.Getpid())
	}
	return err
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the machine's boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// procStat reads a process's start time, and whether it still runs.
func procStat(pid int) (start uint64, running bool, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	// The second field, a name in parentheses, may hold anything.
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("look at process %d: its stat has %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	running = fields[0] != "Z" && fields[0] != "X"
	if !running {
		// A first thread that has ended is no ended process: it looks like this while another thread executes a program, as a machine's does.
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		running = err == nil && len(threads) > 1
	}
	return start, running, err
}

// signal sends sig to the process if it is still the one on record.
func (p process) signal(sig unix.Signal) error {
	if p.Pid == 0 {
		return nil // planned, and never started
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.Pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.alive() { // checked after the open: the descriptor stays with the process that was looked at
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.Pid, err)
	}
	return nil
}

// await returns when the process has ended, which for pid 1 of a pid namespace means all of that namespace.
func (p process) await(ctx context.Context) error {
	for p.alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of process %d: %w", p.Pid, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func readState(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s: make one with godwit-lab up", ErrNoLab, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read the lab's state in %s: %w", dir, err)
	}
	if s.Machines == nil {
		s.Machines = map[string]*machine{}
	}
	return &s, nil
}

// writeState replaces the state file, whole or not at all.
func writeState(dir string, s *state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	tmp := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, stateFile)); err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	return nil
}

// lockNotice is how long a lock may be busy before it is said what is waited for: as long as an up that has nothing to do takes.
const lockNotice = 2 * time.Second

// lockLab keeps two processes from changing one lab at the same time. The lock file is beside the lab's directory, which Down removes.
func lockLab(ctx context.Context, log *slog.Logger, dir string) (unlock func(), err error) {
	notice := time.AfterFunc(lockNotice, func() { log.Info("waiting for another godwit-lab that changes this lab; Ctrl-C gives up", "dir", dir) })
	defer notice.Stop()
	for {
		unlock, err := tryLock(dir)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another godwit-lab that changes %s: %w", dir, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func tryLock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory for labs: %w", err)
	}
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lab's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	// Down removes the file. Then this is the lock of nothing, and the next one to come would make and get another.
	mine, err := f.Stat()
	there, statErr := os.Stat(f.Name())
	if err != nil || statErr != nil || !os.SameFile(mine, there) {
		return nil, errors.Join(unix.EWOULDBLOCK, f.Close())
	}
	return func() { _ = f.Close() }, nil
}
