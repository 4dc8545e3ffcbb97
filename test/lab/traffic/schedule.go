package traffic

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// realtimePriority is low among real-time threads: above all ordinary ones is enough.
const realtimePriority = 1

// places is how many goroutines may run at a time, if the machine lets them.
const places = 16

// madeUp is the lateness from which on ticks are left out. A sender that goes before everything else and sends what it should have sent in a second keeps a machine
// with one emulated processor from answering for another second.
const madeUp = 25 * time.Millisecond

// preferred is the nice value of a process that measures.
const preferred = -10

// roomToRun lets the goroutines of this process run on a machine that is short of processors: Go's few places would be held by threads that wait for one, and a
// sender with real-time priority would wait for a place; or for the garbage collector, which waits for those threads. It is for the whole process, does what is
// allowed, and may be called again.
func roomToRun() {
	if runtime.GOMAXPROCS(0) < places {
		runtime.GOMAXPROCS(places)
	}
	threads, _ := filepath.Glob("/proc/self/task/*") // fails for wrong patterns alone
	for _, t := range threads {
		tid, err := strconv.Atoi(filepath.Base(t))
		if err != nil {
			continue
		}
		// The kernel's answer is 20 less the nice value. Threads that come later are like those that make them.
		if now, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && 20-now > preferred {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, preferred)
		}
	}
}

// every calls tick at start+i*interval, i = 0, 1…, until ctx ends or tick fails, on a thread of its own that has real-time priority if that is allowed. A tick
// that is late is made up for at once: the schedule does not drift. When more than madeUp is to be made up for, it is left out instead, by whole intervals.
func every(ctx context.Context, interval time.Duration, tick func(i int, due, late time.Duration) error) error {
	done := make(chan error, 1)
	netns.OnThread(func() { done <- ticks(ctx, interval, tick) })
	return <-done
}

func ticks(ctx context.Context, interval time.Duration, tick func(i int, due, late time.Duration) error) error {
	// Neither is needed, both make the sender more punctual.
	if !realtime() {
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
	}
	start, err := monotonic()
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		due := time.Duration(i) * interval
		if err := sleepUntil(start + due); err != nil {
			return err
		}
		now, err := monotonic()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		late := now - start - due
		if err := tick(i, due, late); err != nil {
			return err
		}
		if late > madeUp {
			start += late.Truncate(interval)
		}
	}
}

// realtime gives the thread real-time priority, where there is a second processor. On a single one, as a guest has it, Go's runtime lets the thread spin for what
// a thread of lower priority is to release, the garbage collector for one, until the kernel stops it after a second.
func realtime() bool {
	return runtime.NumCPU() > 1 &&
		unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: realtimePriority}, 0) == nil
}

// monotonic is the kernel's clock that nobody sets.
func monotonic() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

func sleepUntil(t time.Duration) error {
	ts := unix.NsecToTimespec(int64(t))
	for {
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) { // signals of Go's runtime
			return fmt.Errorf("sleep: %w", err)
		}
	}
}
