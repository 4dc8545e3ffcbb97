package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
)

var errNotRunning = errors.New("godwit-agent is not running on this node")

// Client calls the agent.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client of the agent that listens on socket.
func NewClient(socket string) *Client {
	var dialer net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Do carries one request out. The error is a *types.Error if the agent refused or failed, any other if there is none to be reached. Version and
// TimeoutMillis are filled in from the context's deadline, which must be set.
func (c *Client) Do(ctx context.Context, req Request) (*Result, error) {
	req.Version = Version
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil, errors.New("call godwit-agent: the context has no deadline")
	}
	req.TimeoutMillis = max(1, untilMillis(deadline))
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://godwit-agent"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(post)
	if err != nil {
		return nil, c.explain(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return decodeResponse(resp)
}

func (c *Client) explain(err error) error {
	const remedy = "check the godwit-agent pod of this node (kubectl -n godwit-system get pods -o wide -l app.kubernetes.io/component=agent)"
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens on %s: %s", errNotRunning, c.socket, remedy)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("godwit-agent did not answer on %s in time: %w: see its log", c.socket, err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("godwit-agent ended while it worked on the request: %w: %s", err, remedy)
	default:
		return fmt.Errorf("call godwit-agent on %s: %w", c.socket, err)
	}
}

func decodeResponse(resp *http.Response) (*Result, error) {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read response of godwit-agent: %w", err)
	}
	if len(raw) > maxBody {
		return nil, fmt.Errorf("response of godwit-agent is over %d bytes", maxBody)
	}
	var out Response
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("response of godwit-agent (HTTP %s) is not JSON: %w: %.200q", resp.Status, err, raw)
	}
	if out.Error != nil {
		return nil, out.Error
	}
	if resp.StatusCode != http.StatusOK {
		return nil, types.NewError(types.ErrInternal, "godwit-agent answered HTTP "+resp.Status+" without an error", "")
	}
	return out.Result, nil
}
