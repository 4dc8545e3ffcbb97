package frame

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bootIDPath is the random identity that the kernel gives to each boot of a machine.
const bootIDPath = "/proc/sys/kernel/random/boot_id"

// Clock is what the kernel says of the clock by which frames are timed.
type Clock struct {
	// BootID is the machine's: namespaces and containers of one machine share it, and its clock.
	BootID string
	// Synchronized: NTP or PTP disciplines the clock.
	Synchronized bool
	// MaxError bounds its error; it means little unless Synchronized.
	MaxError time.Duration
}

// ReadClock asks the kernel, see adjtimex(2). It changes nothing.
func ReadClock() (Clock, error) {
	id, err := os.ReadFile(bootIDPath)
	if err != nil {
		return Clock{}, fmt.Errorf("read the machine's boot ID: %w", err)
	}
	var state unix.Timex // modes 0: a question
	if _, err := unix.Adjtimex(&state); err != nil {
		return Clock{}, fmt.Errorf("ask for the clock's state: %w", err)
	}
	return Clock{
		BootID: strings.TrimSpace(string(id)), Synchronized: state.Status&unix.STA_UNSYNC == 0, MaxError: time.Duration(state.Maxerror) * time.Microsecond,
	}, nil
}
