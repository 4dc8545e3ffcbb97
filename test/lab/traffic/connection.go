package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	openTimeout = time.Minute
	// endTimeout is how long the peer may take to end what the run has ended: retransmissions after an interruption included.
	endTimeout = 15 * time.Second
	echoSize   = 64
	readSize   = 32 << 10
	// The time between two writes of a bulk stream, or between two looks at what was acknowledged of it, is minPace to maxPace: long enough for paceBytes at its rate.
	minPace   = 10 * time.Millisecond
	maxPace   = time.Second
	paceBytes = 1000
	// maxBurst is how many such times a stream makes up for after it could not write.
	maxBurst = 10
	// soon is how much of a byte's time a byte may be sent early: a timer that fires a millisecond before the second would leave out a whole one at a byte a second.
	soon = 0.05
)

// connection is one of a run's.
type connection struct {
	hello
	*meter
	spec *Spec
	tcp  *net.TCPConn

	mu       sync.Mutex
	requests []time.Time // of kind Echo, that have not been answered
	sent     int64       // bytes of the stream, the hello not counted
}

// open dials and says hello. A connection that cannot be opened is a result, not an error.
func (c *connection) open(ctx context.Context, place Place) bool {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	err := func() error {
		conn, err := place.Dial(ctx, "tcp", c.meter.c.Peer.String())
		if err != nil {
			return err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return errors.Join(fmt.Errorf("a TCP connection is a %T", conn), conn.Close())
		}
		if _, err := tcp.Write(c.hello.bytes()); err != nil {
			return errors.Join(err, tcp.Close())
		}
		c.tcp = tcp
		return nil
	}()
	if err != nil {
		c.end(Refused, err)
		return false
	}
	c.opened()
	return true
}

// hold keeps the connection busy until ctx ends, and ends it. What goes wrong is in the meter.
func (c *connection) hold(ctx context.Context) {
	defer func() { _ = c.tcp.Close() }()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := c.write(gctx)
		if gctx.Err() == nil {
			return err // it broke; closing it wakes the reader
		}
		c.settle()
		// The end: the peer answers it when it has got everything.
		return errors.Join(c.tcp.SetReadDeadline(time.Now().Add(endTimeout)), c.tcp.CloseWrite())
	})
	g.Go(func() error { return c.read(ctx) })
	if c.kind == Upload {
		g.Go(func() error { return c.watch(gctx) })
	}
	stop := context.AfterFunc(gctx, func() {
		if ctx.Err() == nil {
			_ = c.tcp.SetDeadline(time.Now()) // one of them failed: the others are woken
			return
		}
		_ = c.tcp.SetWriteDeadline(time.Now().Add(endTimeout))
	})
	err := g.Wait()
	stop()
	c.end(reason(err), err)
}

// write sends until ctx ends.
func (c *connection) write(ctx context.Context) error {
	switch c.kind {
	case Echo:
		return c.ask(ctx)
	case Upload:
		p := pacer{rate: c.rate, silence: c.spec.Silence.Duration}
		err := p.stream(ctx, c.tcp, c.seed())
		c.mu.Lock()
		c.sent = p.offset
		c.mu.Unlock()
		return err
	}
	<-ctx.Done()
	return nil
}

// ask sends a request at every interval, whether or not the last one has been answered.
func (c *connection) ask(ctx context.Context) error {
	tick := time.NewTicker(c.spec.Echo.Interval.Duration)
	defer tick.Stop()
	buf := make([]byte, echoSize)
	for {
		fill(buf, c.seed(), c.sent)
		c.mu.Lock()
		c.requests = append(c.requests, time.Now())
		c.sent += echoSize
		c.mu.Unlock()
		if err := c.tcp.SetWriteDeadline(time.Now().Add(c.spec.Silence.Duration)); err != nil {
			return err
		}
		if _, err := c.tcp.Write(buf); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// read takes what the peer sends and checks it, until the peer ends the connection. That is right only after ctx has ended.
func (c *connection) read(ctx context.Context) error {
	buf := make([]byte, readSize)
	check := verifier{seed: c.seed()}
	var receipt []byte
	for {
		if c.kind != Upload && ctx.Err() == nil {
			if err := c.tcp.SetReadDeadline(time.Now().Add(c.spec.Silence.Duration)); err != nil {
				return err
			}
			if ctx.Err() != nil { // the writer has set another deadline meanwhile, perhaps
				_ = c.tcp.SetReadDeadline(time.Now().Add(endTimeout))
			}
		}
		n, err := c.tcp.Read(buf)
		switch {
		case c.kind == Upload:
			receipt = append(receipt, buf[:min(n, 100)]...)
		case n > 0:
			if err := check.check(buf[:n]); err != nil {
				return err
			}
			c.add(int64(n))
			c.answered(check.offset)
		}
		if errors.Is(err, io.EOF) {
			if ctx.Err() == nil && wasReset(c.tcp) {
				return unix.ECONNRESET // the writer got to know first, which leaves the reader an end of file
			}
			if ctx.Err() == nil {
				return early(string(receipt))
			}
			return c.complete(check.offset, string(receipt))
		}
		if err != nil {
			return err
		}
	}
}

// corruptReceipt begins what a sink says of wrong contents; the offset follows.
const corruptReceipt = "corrupt "

// early is why the peer has ended a connection that the run has not ended.
func early(receipt string) error {
	if at, ok := strings.CutPrefix(receipt, corruptReceipt); ok {
		if offset, err := strconv.ParseInt(strings.TrimSpace(at), 10, 64); err == nil {
			return errCorrupt{offset}
		}
	}
	return io.ErrUnexpectedEOF
}

// answered takes note of the requests that end at or before offset.
func (c *connection) answered(offset int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for now := time.Now(); len(c.requests) > 0 && c.sent-int64(len(c.requests)-1)*echoSize <= offset; {
		c.waited(now.Sub(c.requests[0]))
		c.requests = c.requests[1:]
	}
}

// complete checks that nothing was missing when the peer ended the connection.
func (c *connection) complete(received int64, receipt string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch want := strconv.FormatInt(c.sent, 10) + "\n"; {
	case c.kind == Echo && received != c.sent:
		return fmt.Errorf("%w: %d of %d bytes came back", errMissing, received, c.sent)
	case c.kind == Upload && receipt != want:
		return fmt.Errorf("%w: the peer's receipt is %q, want %q", errMissing, receipt, want)
	}
	return nil
}

// errMissing is a stream that ended in order, but before its content did.
var errMissing = errors.New("the content is incomplete")

// watch counts what the peer has acknowledged, and ends a connection on which that stands still.
func (c *connection) watch(ctx context.Context) error {
	return sample(ctx, c.tcp, c.meter, c.rate, c.spec.Silence.Duration)
}

// tcpInfo is what the kernel knows of a connection.
func tcpInfo(tcp *net.TCPConn) (*unix.TCPInfo, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) { info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return nil, err
	}
	return info, infoErr
}

// wasReset tells whether a connection that can be read no more, and whose own half has not been closed, is closed altogether: a peer's orderly end leaves
// our half open.
func wasReset(tcp *net.TCPConn) bool {
	const closed = 7 // TCP_CLOSE in the kernel's net/tcp_states.h
	info, err := tcpInfo(tcp)
	return err == nil && info.State == closed
}

// sample adds what the peer's kernel has acknowledged to a meter until ctx ends. Zero silence is no limit.
func sample(ctx context.Context, tcp *net.TCPConn, m *meter, rate int64, silence time.Duration) error {
	tick := time.NewTicker(pace(rate))
	defer tick.Stop()
	var last uint64
	for {
		info, err := tcpInfo(tcp)
		if err != nil {
			return fmt.Errorf("read what the peer has acknowledged: %w", err)
		}
		m.add(int64(info.Bytes_acked - last))
		last = info.Bytes_acked
		if idle := m.idle(); silence > 0 && idle > silence {
			return fmt.Errorf("nothing was acknowledged for %s: %w", idle.Round(time.Millisecond), os.ErrDeadlineExceeded)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// pacer writes a pattern at a rate.
type pacer struct {
	rate    int64
	silence time.Duration
	offset  int64
	owed    float64
}

// due adds what the rate has for the time that has passed, and is how many bytes may be written now.
func (p *pacer) due(passed time.Duration) int {
	most := float64(p.rate)*(maxBurst*pace(p.rate)).Seconds() + 1
	p.owed = min(p.owed+float64(p.rate)*passed.Seconds(), most)
	return max(0, int(p.owed+soon))
}

// pace is the time between two writes at a rate, in bytes a second.
func pace(rate int64) time.Duration {
	return min(max(minPace, time.Duration(paceBytes*int64(time.Second)/max(rate, 1))), maxPace)
}

// stream writes until ctx ends.
func (p *pacer) stream(ctx context.Context, tcp *net.TCPConn, seed uint64) error {
	tick := time.NewTicker(pace(p.rate))
	defer tick.Stop()
	last := time.Now()
	var buf []byte
	for {
		now := time.Now()
		n := p.due(now.Sub(last))
		last = now
		if n > 0 {
			if cap(buf) < n {
				buf = make([]byte, n)
			}
			fill(buf[:n], seed, p.offset)
			if err := tcp.SetWriteDeadline(now.Add(p.silence)); err != nil {
				return err
			}
			written, err := tcp.Write(buf[:n])
			p.offset += int64(written)
			if err != nil {
				return err
			}
			p.owed -= float64(n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// reason classifies what ended a connection.
func reason(err error) Reason {
	var corrupt errCorrupt
	var timeout net.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &corrupt), errors.Is(err, errMissing):
		return Corrupt
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return Reset
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	case errors.Is(err, io.ErrUnexpectedEOF):
		return EOF
	}
	return Failed
}
