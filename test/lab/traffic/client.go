package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// askTimeout bounds a question to a control port. Stopping a run takes twice endTimeout at worst, and longer in a guest that the machine lets wait.
const askTimeout = 3 * time.Minute

// maxAnswer bounds an answer: a result of MaxLength.
const maxAnswer = 256 << 20

// awaitInterval is between two looks at a run.
const awaitInterval = 100 * time.Millisecond

// Client asks a server's control port. It is safe for concurrent use.
type Client struct {
	base string
	http *http.Client
}

// NewClient asks the server at addr from a place, for example a VM's from the namespace of a node. Every question has a connection of its own: one that was
// open while the VM migrated says nothing about the next.
func NewClient(place Place, addr netip.AddrPort) *Client {
	return NewClientVia(&http.Transport{DialContext: place.Dial, DisableKeepAlives: true}, "http://"+addr.String())
}

// NewClientVia asks the server at base, "http://HOST:PORT", by means of a transport, for example through a command in a pod.
func NewClientVia(transport http.RoundTripper, base string) *Client {
	return &Client{base: base, http: &http.Client{Transport: transport, Timeout: askTimeout}}
}

// Start starts a run.
func (c *Client) Start(ctx context.Context, spec Spec) (RunID, error) {
	var s Status
	if err := c.ask(ctx, http.MethodPost, "/runs", spec, &s); err != nil {
		return 0, err
	}
	return s.Run, nil
}

// Status looks at a run.
func (c *Client) Status(ctx context.Context, run RunID) (s Status, err error) {
	err = c.ask(ctx, http.MethodGet, "/runs/"+run.String(), nil, &s)
	return s, err
}

// Stop ends a run and returns its result. It may be called again.
func (c *Client) Stop(ctx context.Context, run RunID) (*Result, error) {
	var r Result
	if err := c.ask(ctx, http.MethodPost, "/runs/"+run.String()+"/stop", nil, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Arrivals are what the server has seen of somebody else's run.
func (c *Client) Arrivals(ctx context.Context, run RunID) (*Arrivals, error) {
	var a Arrivals
	if err := c.ask(ctx, http.MethodGet, "/arrivals/"+run.String(), nil, &a); err != nil {
		return nil, err
	}
	return &a, nil
}

// Await waits until the server answers.
func (c *Client) Await(ctx context.Context) error {
	for {
		err := c.ask(ctx, http.MethodGet, "/", nil, nil)
		if err == nil {
			return nil
		}
		if pause(ctx, awaitInterval) != nil {
			return fmt.Errorf("wait for the traffic server at %s: %w", c.base, err)
		}
	}
}

// AwaitOpen waits until all connections of a run are open and probes are answered. It fails when a connection is broken before that.
func (c *Client) AwaitOpen(ctx context.Context, run RunID) error {
	for {
		s, err := c.Status(ctx, run)
		if err != nil {
			return err
		}
		switch {
		case s.Ended || s.Broken > 0:
			return fmt.Errorf("run %s at %s: %d of %d connections are broken, ended is %t: want all open", run, c.base, s.Broken, s.Wanted, s.Ended)
		case s.Open == s.Wanted && (s.Sent == 0 || s.Replied > 0):
			return nil
		}
		if pause(ctx, awaitInterval) != nil {
			return fmt.Errorf("wait for the connections of run %s at %s: %w: %d of %d are open, %d of %d probes were answered", run, c.base, context.Cause(ctx), s.Open,
				s.Wanted, s.Replied, s.Sent)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask sends a question and reads the answer; nil is no question, or none that is of interest.
func (c *Client) ask(ctx context.Context, method, path string, question, into any) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s%s: %w", method, c.base, path, err)
		}
	}()
	var body io.Reader
	if question != nil {
		b, err := json.Marshal(question)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("status %s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}
