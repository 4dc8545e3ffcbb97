// Package qmp speaks QEMU's machine protocol: commands, their answers, and events (docs/interop/qmp-spec in QEMU's sources).
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrGone says that the connection has ended: QEMU has.
var ErrGone = errors.New("QEMU has closed its machine protocol connection")

// Error is QEMU's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("QEMU: %s: %s", e.Command, e.Desc) }

// Event is something that QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage
	// Time is when it happened, by QEMU's wall clock, in microseconds.
	Time time.Time
}

// Conn is a connection to one QEMU. Execute is safe for concurrent use.
type Conn struct {
	conn    net.Conn
	onEvent func(Event)
	ended   chan struct{}

	mu     sync.Mutex // for what follows, and for writing
	nextID int
	asked  map[int]chan message
}

// message is any of the protocol's: a greeting, an answer or an event.
type message struct {
	Greeting  json.RawMessage `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *Error          `json:"error"`
	ID        int             `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// command is what is sent.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        int    `json:"id"`
}

// New negotiates and returns a connection that is ready for commands. onEvent is called for each event in order, from one goroutine; answers wait for it, so it
// must not execute commands itself. Closing conn ends everything.
func New(ctx context.Context, conn net.Conn, onEvent func(Event)) (*Conn, error) {
	c := &Conn{conn: conn, onEvent: onEvent, ended: make(chan struct{}), nextID: 1, asked: map[int]chan message{}}
	dec := json.NewDecoder(conn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	var greeting message
	err := dec.Decode(&greeting)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil || greeting.Greeting == nil {
		return nil, fmt.Errorf("read QEMU's greeting: %w", errors.Join(err, ctx.Err()))
	}
	go c.read(dec)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, err
	}
	return c, nil
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.ended }

func (c *Conn) read(dec *json.Decoder) {
	defer close(c.ended)
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			return // QEMU has ended, or is being ended: the process tells how
		}
		if m.Event != "" {
			c.onEvent(Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
			continue
		}
		c.mu.Lock()
		answer := c.asked[m.ID]
		delete(c.asked, m.ID)
		c.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
}

// Execute runs a command. arguments and result may be nil. A refusal is an *Error.
func (c *Conn) Execute(ctx context.Context, name string, arguments, result any) error {
	id, answer, err := c.send(name, arguments)
	if err != nil {
		return fmt.Errorf("send %s to QEMU: %w", name, err)
	}
	var m message
	select {
	case m = <-answer:
	case <-c.ended:
		return fmt.Errorf("%s: %w", name, ErrGone)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.asked, id)
		c.mu.Unlock()
		return fmt.Errorf("wait for QEMU's answer to %s: %w", name, ctx.Err())
	}
	if m.Error != nil {
		m.Error.Command = name
		return m.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("read QEMU's answer to %s: %w", name, err)
	}
	return nil
}

func (c *Conn) send(name string, arguments any) (id int, answer chan message, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, answer = c.nextID, make(chan message, 1)
	c.nextID++
	b, err := json.Marshal(command{Execute: name, Arguments: arguments, ID: id})
	if err != nil {
		return 0, nil, err
	}
	c.asked[id] = answer
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		delete(c.asked, id)
		if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) {
			err = ErrGone
		}
		return 0, nil, err
	}
	return id, answer, nil
}
