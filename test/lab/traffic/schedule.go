package traffic

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// realtimePriority is low among real-time threads: above all ordinary ones is enough.
const realtimePriority = 1

// places is how many goroutines may run at a time, if the machine lets them.
const places = 16

// roomToRun lets goroutines of this process run although others cannot: on a machine that is short of processors, Go's few places are held by threads that wait
// for one, and a sender with real-time priority would wait for a place. It is for the whole process, and may be called again.
func roomToRun() {
	if runtime.GOMAXPROCS(0) < places {
		runtime.GOMAXPROCS(places)
	}
}

// every calls tick at start+i*interval, i = 0, 1…, until ctx ends or tick fails, on a thread of its own that has real-time priority if that is allowed. A tick
// that is late is made up for at once: the schedule does not drift.
func every(ctx context.Context, interval time.Duration, tick func(i int, due, late time.Duration) error) error {
	done := make(chan error, 1)
	netns.OnThread(func() { done <- ticks(ctx, interval, tick) })
	return <-done
}

func ticks(ctx context.Context, interval time.Duration, tick func(i int, due, late time.Duration) error) error {
	// Neither is needed, both make the sender more punctual.
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: realtimePriority}, 0); err != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
	}
	start, err := monotonic()
	if err != nil {
		return err
	}
	for i := 0; ctx.Err() == nil; i++ {
		due := time.Duration(i) * interval
		if err := sleepUntil(start + due); err != nil {
			return err
		}
		now, err := monotonic()
		if err != nil {
			return err
		}
		if err := tick(i, due, now-start-due); err != nil {
			return err
		}
	}
	return nil
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
