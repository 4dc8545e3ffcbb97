// Package traffic puts traffic on a network and measures what becomes of it: probes every 5 ms, and TCP connections that are held, whose contents are checked.
//
// A Server answers; a Run asks. Both are started in this process, in a network namespace of choice (Place), or are in the program traffic, whose control
// port a Client uses. A Client starts a run with Start, waits for its connections with AwaitOpen, and ends it with Stop; Arrivals are what a server has
// seen of somebody else's run.
//
// # Clocks
//
// A virtual machine's own clock stands still while QEMU has stopped it. What a run in a VM says about time is therefore true only between two stops, and the
// time of a gap in what it sends is known to the peer alone: OneWay makes the result of that direction from the peer's arrivals. Counts, contents and broken
// connections are true on both sides. All other clocks are taken to be one machine's: times are what its wall clock said, so they can be put beside those of
// QEMU's events and of API objects, as long as nobody sets the clock during the run; Result.ClockStep says whether somebody did.
//
// The time of a probe's arrival is the kernel's, taken when the packet came out of the device, not when this process got round to reading it. The time it
// was sent is taken before the system call. Probes follow an absolute schedule, from a thread with real-time priority where that is allowed; how late the
// sender was at worst is part of the result, and a gap says how long the sender itself paused in it. Processes that measure get at least 16 places for goroutines
// (GOMAXPROCS) and, if they may, a nice value of -10. What goes through Open vSwitch's userspace datapath waits for the processor with it: on a machine that is busy, an undisturbed network shows gaps
// of tens of milliseconds, so a gap means something only beside one that was measured when nothing was done.
package traffic

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// RunID tells runs apart, also in what a server records. Zero is none. Text is 16 hexadecimal digits.
type RunID uint64

// NewRunID draws one by chance.
func NewRunID() RunID {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	return RunID(binary.BigEndian.Uint64(b[:]) | 1)
}

// String is the ID as in paths of the control port.
func (r RunID) String() string { return fmt.Sprintf("%016x", uint64(r)) }

// MarshalText is String.
func (r RunID) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads hexadecimal digits.
func (r *RunID) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil {
		return fmt.Errorf("run ID %q: want up to 16 hexadecimal digits", text)
	}
	*r = RunID(v)
	return nil
}

// Never stands in Times for what has not happened.
const Never time.Duration = -1

// Times are offsets from a start that is named beside them. JSON has whole microseconds, and -1 for Never.
type Times []time.Duration

// MarshalJSON rounds down to microseconds.
func (t Times) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 10*len(t)+2)
	b = append(b, '[')
	for i, d := range t {
		if i > 0 {
			b = append(b, ',')
		}
		if d == Never {
			b = append(b, "-1"...)
			continue
		}
		b = strconv.AppendInt(b, d.Microseconds(), 10)
	}
	return append(b, ']'), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Times) UnmarshalJSON(b []byte) error {
	var micros []int64
	if err := json.Unmarshal(b, &micros); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	*t = make(Times, len(micros))
	for i, us := range micros {
		(*t)[i] = time.Duration(us) * time.Microsecond
		if us == -1 {
			(*t)[i] = Never
		}
	}
	return nil
}

// Duration is a time.Duration that JSON has as text, "5ms".
type Duration struct{ time.Duration }

// MarshalText is the duration's String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// Place is where sockets are made.
type Place struct {
	// Namespace is the path of a network namespace, for example /proc/PID/ns/net; empty is the caller's own.
	Namespace string
}

// Dial is net.Dialer.DialContext in the place. addr must be numeric.
func (p Place) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	var d net.Dialer
	err = p.do(func() error { conn, err = d.DialContext(ctx, network, addr); return err })
	return conn, err
}

func (p Place) listen(ctx context.Context, addr string) (l net.Listener, err error) {
	var lc net.ListenConfig
	err = p.do(func() error { l, err = lc.Listen(ctx, "tcp", addr); return err })
	return l, err
}

func (p Place) listenUDP(ctx context.Context, addr string) (*net.UDPConn, error) {
	var lc net.ListenConfig
	var pc net.PacketConn
	err := p.do(func() (err error) { pc, err = lc.ListenPacket(ctx, "udp", addr); return err })
	if err != nil {
		return nil, err
	}
	return udpConn(pc)
}

// do runs f where sockets belong to the place; they do from then on, whoever uses them.
func (p Place) do(f func() error) error {
	if p.Namespace == "" {
		return f()
	}
	return netns.Do(p.Namespace, f)
}

func udpConn(c any) (*net.UDPConn, error) {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, fmt.Errorf("a socket for datagrams is a %T, want *net.UDPConn", c)
	}
	return u, nil
}
