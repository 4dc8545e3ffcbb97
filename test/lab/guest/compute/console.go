package compute

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// scrollback is how many bytes of the console's past a viewer gets.
const scrollback = 32 << 10

// viewerTimeout is how long a viewer may take for what it is sent before it is dropped: the guest waits meanwhile.
const viewerTimeout = time.Second

// errNoConsole says that there is no guest to type to.
var errNoConsole = errors.New("no QEMU is connected to the console")

// console shows the guest's serial line to any number of viewers. Safe for concurrent use.
type console struct {
	copy io.Writer

	mu      sync.Mutex
	guest   net.Conn
	past    []byte
	viewers map[net.Conn]bool
}

func newConsole(w io.Writer) *console {
	if w == nil {
		w = io.Discard
	}
	return &console{copy: w, viewers: map[net.Conn]bool{}}
}

// serve reads what the guest prints until QEMU ends.
func (c *console) serve(guest net.Conn) {
	c.mu.Lock()
	c.guest = guest
	c.mu.Unlock()
	buf := make([]byte, 4096)
	for {
		n, err := guest.Read(buf)
		c.show(buf[:n])
		if err != nil {
			c.mu.Lock()
			c.guest = nil
			c.mu.Unlock()
			return
		}
	}
}

func (c *console) show(b []byte) {
	_, _ = c.copy.Write(b) // a log
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = append(c.past, b...)
	c.past = c.past[max(0, len(c.past)-scrollback):]
	for v := range c.viewers {
		c.send(v, b)
	}
}

// send must be called with the lock held.
func (c *console) send(v net.Conn, b []byte) {
	if err := v.SetWriteDeadline(time.Now().Add(viewerTimeout)); err == nil {
		if _, err = v.Write(b); err == nil {
			return
		}
	}
	delete(c.viewers, v)
	_ = v.Close()
}

// attach shows the console on conn and types what comes from it, until it is closed.
func (c *console) attach(conn net.Conn) {
	c.mu.Lock()
	c.viewers[conn] = true
	if len(c.past) > 0 {
		c.send(conn, c.past)
	}
	c.mu.Unlock()
	buf := make([]byte, 1024)
	for {
		n, err := conn.Read(buf)
		if n > 0 && c.write(buf[:n]) != nil || err != nil {
			break
		}
	}
	c.mu.Lock()
	delete(c.viewers, conn)
	c.mu.Unlock()
	_ = conn.Close()
}

func (c *console) write(b []byte) error {
	c.mu.Lock()
	guest := c.guest
	c.mu.Unlock()
	if guest == nil {
		return errNoConsole
	}
	_, err := guest.Write(b)
	return err
}

// close ends all viewers.
func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := range c.viewers {
		_ = v.Close()
	}
	c.viewers = map[net.Conn]bool{}
}
