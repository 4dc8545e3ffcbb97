package traffic

import (
	"net/netip"
	"sync"
	"time"
)

// maxBuckets bounds what a meter remembers: MaxLength in the shortest buckets.
const maxBuckets = int(MaxLength / (10 * time.Millisecond))

// Reason is why a connection is broken; empty while it is not.
type Reason string

// Reasons.
const (
	// Refused: it was not opened at all.
	Refused Reason = "not opened"
	// Reset: RST, from the peer or in its name.
	Reset Reason = "reset"
	// Timeout: no progress for Spec.Silence, or no answer to the end of the run, or the kernel gave up.
	Timeout Reason = "timeout"
	// EOF: the peer closed it before the run's end.
	EOF Reason = "eof"
	// Corrupt: other bytes than the pattern's, or too few.
	Corrupt Reason = "corrupt"
	// Failed: anything else; the error says it.
	Failed Reason = "failed"
)

// Connection is one TCP connection, as the run that opened it saw it, or, in Arrivals, as its server did.
type Connection struct {
	Number uint32         `json:"number"`
	Kind   Kind           `json:"kind"`
	Peer   netip.AddrPort `json:"peer"`
	Opened bool           `json:"opened"`
	Broken Reason         `json:"broken,omitempty"`
	// Error says more about Broken.
	Error string `json:"error,omitempty"`
	// Ended is when the connection broke or was closed.
	Ended time.Duration `json:"ended,omitempty"`
	// Bytes made their way: to the one who reports them, or, where that one only sends, acknowledged by the other's kernel.
	Bytes int64 `json:"bytes"`
	// Stall is the longest time without such progress.
	Stall Gap `json:"stall"`
	// Wait is the longest time from a request of kind Echo to its answer.
	Wait time.Duration `json:"wait,omitempty"`
	// Buckets are Bytes by time, from Start on.
	Buckets []int64 `json:"buckets,omitempty"`
}

// meter measures one connection's progress. It is safe for concurrent use.
type meter struct {
	mu     sync.Mutex
	start  time.Time
	bucket time.Duration
	c      Connection
	last   time.Duration
	ended  bool
}

func newMeter(start time.Time, bucket time.Duration, c Connection) *meter {
	return &meter{start: start, bucket: bucket, c: c}
}

// opened begins the time in which progress is expected.
func (m *meter) opened() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.c.Opened, m.last = true, max(time.Since(m.start), 0)
	m.c.Stall = Gap{From: m.last, To: m.last}
}

// add is progress of n bytes, now.
func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n <= 0 || m.ended {
		return
	}
	now := max(time.Since(m.start), 0)
	m.silent(now)
	m.last = now
	m.c.Bytes += n
	i := int(now / m.bucket)
	if i >= maxBuckets {
		return
	}
	for len(m.c.Buckets) <= i {
		m.c.Buckets = append(m.c.Buckets, 0)
	}
	m.c.Buckets[i] += n
}

func (m *meter) silent(now time.Duration) {
	if now-m.last > m.c.Stall.Length() {
		m.c.Stall = Gap{From: m.last, To: now}
	}
}

// waited says how long a request waited for its answer.
func (m *meter) waited(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.c.Wait = max(m.c.Wait, d)
}

// idle is for how long there has been no progress.
func (m *meter) idle() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.start) - m.last
}

// settle ends the time in which progress is expected: the sender has nothing more to send.
func (m *meter) settle() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unfinished()
}

// unfinished counts the silence that goes on now.
func (m *meter) unfinished() {
	if now := time.Since(m.start); m.c.Opened && !m.ended && now-m.last > m.c.Stall.Length() {
		m.c.Stall = Gap{From: m.last, To: now, Open: true}
	}
}

// end is the connection's end, once; err is nil when that is as it should be.
func (m *meter) end(reason Reason, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	if err != nil {
		m.unfinished()
	}
	m.ended = true
	m.c.Ended = max(time.Since(m.start), 0)
	if err != nil {
		m.c.Broken, m.c.Error = reason, err.Error()
	}
}

// state is what is known now.
func (m *meter) state() Connection {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.c
	c.Buckets = append([]int64(nil), m.c.Buckets...)
	return c
}
