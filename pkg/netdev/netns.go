// Package netdev is the node's kernel network: links, addresses, routes, network namespaces, checksum offload and nftables. It knows
// nothing of pods, Kubernetes or OVN; pkg/agent decides what is wanted and this package makes it so.
//
// Every function is idempotent: what is already as wanted is left alone, and removing the absent succeeds.
package netdev

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNoLink is what errors wrap when the namespace has no link of that name.
var ErrNoLink = errors.New("no such link")

var errNoNetns = errors.New("not a network namespace")

// Host is one network namespace as seen by this package: the node's. The zero value is the process's own. Safe for concurrent use.
type Host struct {
	// Netns is the path of the namespace; empty is the process's own.
	Netns string
}

// Do runs fn on a thread that is in the host's namespace: sockets that fn opens belong to it. See InNetns.
func (h Host) Do(fn func() error) error { return h.do(fn) }

// do runs fn on a thread that is in the host's namespace.
func (h Host) do(fn func() error) error {
	if h.Netns == "" {
		return fn()
	}
	return InNetns(h.Netns, fn)
}

// InNetns runs fn on an OS thread of its own that is in the network namespace at path, and returns fn's error. Sockets that fn opens,
// /proc/sys/net that it writes and processes that it starts belong to that namespace. fn must not start goroutines that need it.
//
// If the thread cannot be switched back it is ended instead of reused: a thread in a strange namespace would poison whatever the runtime
// schedules on it next.
func InNetns(path string, fn func() error) error {
	if err := CheckNetns(path); err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() { result <- onNetnsThread(path, fn) }()
	return <-result
}

// onNetnsThread must run in a goroutine of its own: returning with the thread still locked ends the thread with it.
func onNetnsThread(path string, fn func() error) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() { _ = own.Close() }()
	target, err := netns.GetFromPath(path)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer func() { _ = target.Close() }()
	if err := netns.Set(target); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	fnErr := fn()
	if err := netns.Set(own); err != nil {
		return errors.Join(fnErr, fmt.Errorf("leave network namespace %s: %w", path, err))
	}
	runtime.UnlockOSThread()
	return fnErr
}

// CheckNetns returns an error unless path is, still, a network namespace.
func CheckNetns(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("%w: %s: %w", errNoNetns, path, err)
	}
	// /proc/PID/ns/net is on nsfs too; before Linux 3.19 it was on procfs.
	if fs.Type != unix.NSFS_MAGIC && fs.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("%w: %s is on a file system of type %#x, want nsfs", errNoNetns, path, fs.Type)
	}
	return nil
}

// SameNetns reports whether path is the host's own namespace.
func (h Host) SameNetns(path string) (bool, error) {
	own := h.Netns
	if own == "" {
		own = "/proc/thread-self/ns/net"
	}
	a, err := os.Stat(own)
	if err != nil {
		return false, fmt.Errorf("stat own network namespace: %w", err)
	}
	b, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("%w: %s: %w", errNoNetns, path, err)
	}
	return os.SameFile(a, b), nil
}
