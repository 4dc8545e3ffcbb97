package ovs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
)

// control asks ovs-vswitchd to do something, by its control socket beside the database's, as ovs-appctl(8) does.
func (c *Client) control(ctx context.Context, command string, arguments ...string) (said string, err error) {
	db, ok := strings.CutPrefix(c.endpoint, "unix:")
	if !ok {
		return "", fmt.Errorf("Open vSwitch database %s is not a unix socket: ovs-vswitchd cannot be reached beside it", c.endpoint) //nolint:staticcheck // a name
	}
	return Ask(ctx, filepath.Join(filepath.Dir(db), "ovs-vswitchd*.ctl"), command, arguments...)
}

// Call is one question of JSON-RPC 1.0 to a unix socket of Open vSwitch's and OVN's daemons: a control socket, as ovs-appctl(8) uses it, or a database server's
// (RFC 7047). The answer goes to result, a pointer; an error of the other end is an error.
func Call(ctx context.Context, socket, method string, params, result any) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost with it
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(conn).Encode(map[string]any{"id": 0, "method": method, "params": params}); err != nil {
		return errors.Join(err, ctx.Err())
	}
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.NewDecoder(conn).Decode(&answer); ctx.Err() != nil {
		return fmt.Errorf("it does not answer: %w", ctx.Err())
	} else if err != nil {
		return err
	}
	if len(answer.Error) > 0 && string(answer.Error) != "null" {
		var text string
		if json.Unmarshal(answer.Error, &text) != nil {
			text = string(answer.Error)
		}
		return errors.New(strings.TrimSpace(text))
	}
	if err := json.Unmarshal(answer.Result, result); err != nil {
		return fmt.Errorf("read the answer to %s: %w", method, err)
	}
	return nil
}
