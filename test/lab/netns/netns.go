// Package netns runs functions in network namespaces and makes namespaces that leave no trace: a namespace lives in its processes and threads,
// never in a file, so it is gone when they are.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f in the network namespace at path, for example /proc/PID/ns/net. f runs on a thread of its own, which ends with it: f must not
// start goroutines that need the namespace, and processes that f starts are in it.
func Do(path string, f func() error) error {
	done := make(chan error, 1)
	OnThread(func() { done <- enter(path, f) })
	return <-done
}

// OnThread starts f on an operating system thread that runs nothing else and ends with f, so f may change what belongs to the thread: its
// namespaces, its root directory. It is never the process's first thread, which cannot end and is what /proc/self shows.
func OnThread(f func()) {
	taken := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			OnThread(f) // gets another thread, since this one stays locked until it has
			runtime.UnlockOSThread()
			close(taken)
			return
		}
		close(taken)
		f() // not unlocked: Go ends a locked thread with its goroutine
	}()
	<-taken
}

func enter(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("enter network namespace %s: %w: this needs root", path, err)
	}
	return f()
}

// Namespace is a network namespace that lives until Close, in a thread of this process. Its methods are safe for concurrent use.
type Namespace struct {
	path string
	jobs chan job
}

type job struct {
	f    func() error
	done chan error
}

// New makes an empty network namespace.
func New() (*Namespace, error) {
	n := &Namespace{jobs: make(chan job)}
	ready := make(chan error)
	OnThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ready <- fmt.Errorf("make a network namespace: %w: this needs root", err)
			return
		}
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- nil
		for j := range n.jobs {
			j.done <- j.f()
		}
	})
	if err := <-ready; err != nil {
		return nil, err
	}
	return n, nil
}

// Path names the namespace while this process runs and Close has not been called.
func (n *Namespace) Path() string { return n.path }

// Do runs f on the namespace's own thread. Processes that f starts with Pdeathsig live as long as the namespace, not just as long as f.
func (n *Namespace) Do(f func() error) error {
	j := job{f: f, done: make(chan error, 1)}
	n.jobs <- j
	return <-j.done
}

// Close gives up the namespace. It must be called once, and no other method after it.
func (n *Namespace) Close() { close(n.jobs) }
