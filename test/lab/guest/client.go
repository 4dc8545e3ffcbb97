package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Files in a launcher's directory.
const (
	// APISocket is where the launcher is asked.
	APISocket = "launcher.sock"
	// IncomingSocket is where a target's QEMU waits for the stream; OutgoingSocket is where a source's QEMU sends it. A Relay connects them.
	IncomingSocket = "incoming.sock"
	OutgoingSocket = "outgoing.sock"
)

const (
	requestTimeout = time.Minute
	dialPoll       = 20 * time.Millisecond
	// ConsoleProtocol is what a console's connection is upgraded to.
	ConsoleProtocol = "console"
)

// Client asks one launcher. It is safe for concurrent use. Unless said otherwise its methods return when the thing is done; a launcher's refusal is an
// *Error. A request ends after a minute if ctx does not end it.
type Client struct {
	dir  string
	http *http.Client
}

// Error is a launcher's answer that it could not do what it was asked for.
type Error struct {
	// Request is what was asked: "migrate".
	Request string
	// Message says what went wrong and what to do.
	Message string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("launcher: %s: %s", e.Request, e.Message) }

// Dial returns a client for the launcher whose directory is dir, as seen by this process (package pod names a pod's), as soon as it answers, or when ctx ends.
func Dial(ctx context.Context, dir string) (*Client, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, dir, APISocket) }}
	c := &Client{dir: dir, http: &http.Client{Transport: transport}}
	for {
		_, err := c.Status(ctx)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			c.Close()
			return nil, fmt.Errorf("wait for the launcher in %s: %w: %w", dir, ctx.Err(), err)
		case <-time.After(dialPoll):
		}
	}
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Dir is the launcher's directory.
func (c *Client) Dir() string { return c.dir }

// Status asks for the launcher's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, "status", nil, &s)
}

// Plumb ties the pod's links to taps, as virt-handler does before the domain starts. Asking again for the same NICs changes nothing.
func (c *Client) Plumb(ctx context.Context, nics []NIC) ([]Plumbed, error) {
	var p []Plumbed
	return p, c.call(ctx, "plumb", nics, &p)
}

// Start starts QEMU with the NICs that were plumbed; the VM boots.
func (c *Client) Start(ctx context.Context, d Domain) error { return c.call(ctx, "start", d, nil) }

// IncomingRequest is what Incoming sends.
type IncomingRequest struct {
	Domain   Domain   `json:"domain"`
	Incoming Incoming `json:"incoming"`
}

// Incoming starts QEMU so that it waits for the VM at IncomingSocket; it returns when it does.
func (c *Client) Incoming(ctx context.Context, d Domain, in Incoming) error {
	return c.call(ctx, "incoming", IncomingRequest{d, in}, nil)
}

// Plug gives the VM, which runs, the NIC of a network that was plumbed. A VM that has it keeps it.
func (c *Client) Plug(ctx context.Context, network string) error {
	return c.call(ctx, "plug", network, nil)
}

// Unplug takes the NIC of a network from the VM, which runs; it returns when the guest has let go of it. Only the last NIC can be unplugged: the others keep their places.
func (c *Client) Unplug(ctx context.Context, network string) error {
	return c.call(ctx, "unplug", network, nil)
}

// Migrate starts to send the VM to OutgoingSocket, and returns when QEMU has taken the order. How it ends is told by events and Status.
func (c *Client) Migrate(ctx context.Context, m Migration) error {
	return c.call(ctx, "migrate", m, nil)
}

// ContinueMigration releases HoldBeforeSwitchover.
func (c *Client) ContinueMigration(ctx context.Context) error {
	return c.call(ctx, "continue", nil, nil)
}

// StartPostCopy switches a migration that runs to post-copy.
func (c *Client) StartPostCopy(ctx context.Context) error { return c.call(ctx, "postcopy", nil, nil) }

// CancelMigration asks QEMU to give the migration up; it has ended at the status Cancelled (or Completed, if it came too late).
func (c *Client) CancelMigration(ctx context.Context) error { return c.call(ctx, "cancel", nil, nil) }

// Pause stops the VM's processors.
func (c *Client) Pause(ctx context.Context) error { return c.call(ctx, "pause", nil, nil) }

// Resume lets the VM's processors run: after Pause, on a target with HoldResume, and on a source whose target has failed after all was sent.
func (c *Client) Resume(ctx context.Context) error { return c.call(ctx, "resume", nil, nil) }

// Shutdown presses the guest's power button; the guest has ended at the event Off.
func (c *Client) Shutdown(ctx context.Context) error { return c.call(ctx, "shutdown", nil, nil) }

// Leave ends QEMU and the launcher, with status 0: the VM has moved, or is to be destroyed.
func (c *Client) Leave(ctx context.Context) error { return c.call(ctx, "leave", nil, nil) }

// Kill kills QEMU, as a crash does.
func (c *Client) Kill(ctx context.Context) error { return c.call(ctx, "kill", nil, nil) }

// Freeze stops QEMU itself, which then answers nobody.
func (c *Client) Freeze(ctx context.Context) error { return c.call(ctx, "freeze", nil, nil) }

// Thaw lets QEMU go on after Freeze.
func (c *Client) Thaw(ctx context.Context) error { return c.call(ctx, "thaw", nil, nil) }

// call asks for one thing. Requests without a body are questions only if their answer is wanted; all are POSTs.
func (c *Client) call(ctx context.Context, name string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("ask the launcher to %s: %w", name, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://launcher/"+name, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the launcher to %s: %w", name, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the launcher in %s to %s: %w", c.dir, name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask the launcher in %s to %s: %w", c.dir, name, err)
	}
	if resp.StatusCode != http.StatusOK {
		return &Error{Request: name, Message: string(bytes.TrimSpace(answer))}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("read the launcher's answer to %s: %w", name, err)
	}
	return nil
}

// Events yields the launcher's events after the one with that Seq, past ones first; 0 is from the beginning. It ends with an error: ctx's, or io.EOF
// when the launcher has ended.
func (c *Client) Events(ctx context.Context, after int) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://launcher/events?after="+strconv.Itoa(after), http.NoBody)
		if err != nil {
			yield(Event{}, err)
			return
		}
		resp, err := c.http.Do(req)
		if err != nil {
			yield(Event{}, fmt.Errorf("watch the launcher in %s: %w", c.dir, err))
			return
		}
		defer func() { _ = resp.Body.Close() }()
		for dec := json.NewDecoder(resp.Body); ; {
			var e Event
			if err := dec.Decode(&e); err != nil {
				yield(Event{}, eventsEnd(ctx, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// eventsEnd names the end of a stream: a launcher that is killed ends it in the middle of what HTTP expects.
func eventsEnd(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.ErrUnexpectedEOF):
		return io.EOF
	}
	return err
}

// Await returns the first event after the one with that Seq, past or future, that match says true of. A launcher that has received a VM and sends it on has
// events of two migrations: the number of the last one before Migrate tells them apart.
func (c *Client) Await(ctx context.Context, after int, match func(Event) bool) (Event, error) {
	for e, err := range c.Events(ctx, after) {
		if err != nil {
			return Event{}, fmt.Errorf("wait for an event of the launcher in %s: %w", c.dir, err)
		}
		if match(e) {
			return e, nil
		}
	}
	return Event{}, io.EOF // not reached: Events ends with an error
}

// Console attaches to the guest's serial console: a root shell. What it printed last comes first. Any number may be attached. Closing detaches.
func (c *Client) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://launcher/console", http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("attach to the console: %w", err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", ConsoleProtocol)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("attach to the console of the launcher in %s: %w", c.dir, err)
	}
	if conn, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		return conn, nil
	}
	message, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("attach to the console of the launcher in %s: %w", c.dir, err)
	}
	return nil, &Error{Request: "console", Message: string(bytes.TrimSpace(message))}
}
