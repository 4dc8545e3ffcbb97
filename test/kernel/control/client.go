package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
)

// DialFunc opens a connection to the virtual machine.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Client asks a Server. Its methods are safe for concurrent use; each ends with its context.
type Client struct {
	addr string
	dial DialFunc
	http *http.Client
}

// NewClient returns a client of the server at an address, HOST:PORT. Nothing is sent yet.
func NewClient(addr string, dial DialFunc) *Client {
	return &Client{addr: addr, dial: dial, http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 8}}}
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Hello returns nil when the server answers.
func (c *Client) Hello(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodGet, pathHello, nil, nil)
	return err
}

// Try runs a command to its end and returns its result, whatever its exit status. A command whose ctx ends is killed.
func (c *Client) Try(ctx context.Context, cmd Command) (Result, error) {
	b, err := c.post(ctx, pathRun, cmd)
	if err != nil {
		return Result{}, err
	}
	return decode[Result](b)
}

// Run is Try and returns the standard output; an exit status other than 0 is an *ExitError.
func (c *Client) Run(ctx context.Context, cmd Command) (string, error) {
	res, err := c.Try(ctx, cmd)
	if err == nil && res.Status != 0 {
		err = &ExitError{Command: cmd, Result: res}
	}
	return string(res.Stdout), err
}

// Start starts a program that runs on, and returns what Signal takes: its first process's ID.
func (c *Client) Start(ctx context.Context, cmd Command) (id int, err error) {
	b, err := c.post(ctx, pathStart, cmd)
	if err != nil {
		return 0, err
	}
	s, err := decode[started](b)
	return s.ID, err
}

// Signal sends a signal to a program of Start, which is then not restarted. One that has ended gets none, which is no error.
func (c *Client) Signal(ctx context.Context, id int, sig syscall.Signal) error {
	q := url.Values{"id": {strconv.Itoa(id)}, "signal": {strconv.Itoa(int(sig))}}
	_, err := c.do(ctx, http.MethodPost, pathSignal, q, nil)
	return err
}

// ReadFile returns a file of the virtual machine.
func (c *Client) ReadFile(ctx context.Context, path string) ([]byte, error) {
	return c.do(ctx, http.MethodGet, pathFile, url.Values{"path": {path}}, nil)
}

// WriteFile writes a file in the virtual machine, and makes the directories above it.
func (c *Client) WriteFile(ctx context.Context, path string, content []byte, mode fs.FileMode) error {
	q := url.Values{"path": {path}, "mode": {strconv.FormatUint(uint64(mode.Perm()), 8)}}
	_, err := c.do(ctx, http.MethodPut, pathFile, q, content)
	return err
}

func (c *Client) post(ctx context.Context, path string, cmd Command) ([]byte, error) {
	b, err := json.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("encode a command: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, nil, b)
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.addr+path+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the virtual machine: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the virtual machine's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the virtual machine answers: %s", strings.TrimSpace(string(b)))
	}
	return b, nil
}
