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
	sockets, err := filepath.Glob(filepath.Join(filepath.Dir(db), "ovs-vswitchd*.ctl"))
	if err != nil || len(sockets) == 0 {
		return "", fmt.Errorf("there is no control socket ovs-vswitchd*.ctl in %s: is ovs-vswitchd running, and its directory mounted?", filepath.Dir(db))
	}
	var errs []error
	for _, s := range sockets { // one that was killed has left its own
		said, err := ask(ctx, s, command, arguments)
		if err == nil {
			return said, nil
		}
		errs = append(errs, fmt.Errorf("%s %s at %s: %w", command, strings.Join(arguments, " "), s, err))
	}
	return "", errors.Join(errs...)
}

// ask is one question of the protocol of control sockets: JSON-RPC 1.0, whose answer and error are texts (lib/unixctl.c).
func ask(ctx context.Context, socket, command string, arguments []string) (string, error) {
	if arguments == nil {
		arguments = []string{}
	}
	var said string
	err := Call(ctx, socket, command, arguments, &said)
	return said, err
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
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return errors.Join(err, ctx.Err())
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
