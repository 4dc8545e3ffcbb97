// Package cgroup gives each machine of the lab a control group, which becomes the root of the machine's cgroup namespace. Both versions are
// supported; a hybrid machine (version 1 with an empty version 2 beside it) counts as version 1.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root is where the hierarchies are mounted.
const Root = "/sys/fs/cgroup"

// needed are the version 2 controllers that a kubelet does not start without.
var needed = []string{"cpu", "cpuset", "memory", "pids"}

// hierarchy is a mounted hierarchy of version 1.
type hierarchy struct {
	// controllers as in the mount options, "cpu,cpuacct" or "name=systemd".
	controllers string
	// mount is the mount point; root is the group that appears there.
	mount, root string
}

// V2 says whether the machine uses version 2 alone.
func V2() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(Root, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w: mount the control groups", Root, err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// Plan names the directories of a machine's group, one per hierarchy, without making them. They are below the caller's own groups in version 1. A
// version 2 group that holds processes cannot hand controllers to its children, so there they are at the top.
func Plan(lab, machine string) ([]string, error) {
	v2, err := V2()
	if err != nil {
		return nil, err
	}
	if v2 {
		return []string{filepath.Join(Root, lab, machine)}, nil
	}
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	own, err := ownGroups()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hs {
		rel, err := filepath.Rel(h.root, own[h.controllers])
		if err != nil || strings.HasPrefix(rel, "..") {
			rel = "."
		}
		dirs = append(dirs, filepath.Join(h.mount, rel, lab, machine))
	}
	return dirs, nil
}

func hierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list the control group hierarchies: %w", err)
	}
	hs := parseMountinfo(string(b))
	if len(hs) == 0 {
		return nil, fmt.Errorf("no control group hierarchy is mounted below %s: mount version 2 there, or version 1 with the controllers %v", Root, needed)
	}
	return hs, nil
}

func parseMountinfo(s string) []hierarchy {
	var hs []hierarchy
	for line := range strings.Lines(s) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || r[0] != "cgroup" || !strings.HasPrefix(l[4], Root) {
			continue
		}
		var controllers []string
		for o := range strings.SplitSeq(r[2], ",") {
			switch o {
			case "rw", "ro", "xattr", "noprefix", "clone_children", "relatime", "nosuid":
			default:
				if !strings.HasPrefix(o, "release_agent=") {
					controllers = append(controllers, o)
				}
			}
		}
		hs = append(hs, hierarchy{controllers: strings.Join(controllers, ","), mount: l[4], root: l[3]})
	}
	return hs
}

// ownGroups maps controllers to this process's group.
func ownGroups() (map[string]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find this process's control groups: %w", err)
	}
	own := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			own[f[1]] = f[2]
		}
	}
	return own, nil
}

// Make makes the planned directories; existing ones are kept.
func Make(dirs []string) error {
	for _, dir := range dirs {
		for _, d := range []string{filepath.Dir(dir), dir} {
			if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make control group %s: %w", d, err)
			}
			if err := inheritCPUs(d); err != nil {
				return err
			}
		}
	}
	v2, err := V2()
	if err != nil || !v2 {
		return err
	}
	for _, dir := range dirs {
		for _, d := range []string{Root, filepath.Dir(dir)} {
			if err := handDown(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCPUs fills a new version 1 cpuset group, which has no CPU and takes no process otherwise.
func inheritCPUs(dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, f))
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(own)) != "" {
			continue // another hierarchy, or done
		}
		above, aboveErr := os.ReadFile(filepath.Join(filepath.Dir(dir), f))
		if errors.Is(aboveErr, fs.ErrNotExist) {
			continue // version 2 has no such file at its top and inherits by itself
		}
		if err := errors.Join(err, aboveErr); err != nil {
			return fmt.Errorf("read %s: %w", f, err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), above, 0o644); err != nil {
			return fmt.Errorf("give control group %s its CPUs: %w", dir, err)
		}
	}
	clone := filepath.Join(dir, "cgroup.clone_children")
	if _, err := os.Stat(filepath.Join(dir, "cpuset.cpu_exclusive")); err == nil {
		if err := os.WriteFile(clone, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("let the children of control group %s inherit CPUs: %w", dir, err)
		}
	}
	return nil
}

// handDown lets the children of a version 2 group have the needed controllers.
func handDown(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return fmt.Errorf("read the controllers of control group %s: %w", dir, err)
	}
	var lacking []string
	for _, c := range needed {
		if !strings.Contains(" "+strings.TrimSpace(string(have))+" ", " "+c+" ") {
			lacking = append(lacking, "+"+c)
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(lacking, " ")), 0o644); err != nil {
		return fmt.Errorf("enable %s for the children of control group %s: %w: in a container, first move its processes to a child group and enable "+
			"the controllers there", strings.Join(lacking, " "), dir, err)
	}
	return nil
}

// Enter moves this process, with all its threads, into the groups.
func Enter(dirs []string) error {
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("enter control group %s: %w", dir, err)
		}
	}
	return nil
}

// Kill kills every process in the groups and below. It is for what the end of a pid namespace leaves, which should be nothing.
func Kill(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		for _, pid := range Processes(dir) {
			errs = append(errs, killMember(dir, pid))
		}
	}
	return errors.Join(errs...)
}

// killMember makes sure that the number still means the member when it is killed.
func killMember(dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !slices.Contains(Processes(dir), pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// Remove removes the groups and all below them. Processes in them must have been killed; those that are still ending are waited for until ctx
// ends. The lab's own group above goes with its last machine.
func Remove(ctx context.Context, dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeOne(ctx, dir))
		_ = os.Remove(filepath.Dir(dir)) // refused while another machine has a group in it
	}
	return errors.Join(errs...)
}

func removeOne(ctx context.Context, dir string) error {
	for {
		err := removeTree(dir)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: %w: processes %v are in it", dir, err, Processes(dir))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeTree removes a group's directories, deepest first. Their files go with them.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Processes lists the processes in a group and below, by pid.
func Processes(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // a group that vanishes has no processes
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}
