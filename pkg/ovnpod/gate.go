package ovnpod

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/gate"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// Gates are the southbound database's on this node, for those who have an administrator's certificate: one before its socket, for godwit-controller and ovn-northd; one before the socket of its
// raft, for the other members; and for each of those the socket by which this node's member reaches them.
type Gates struct {
	Config Config
	Log    *slog.Logger
	// Addresses are the node's.
	Addresses []netip.Addr
}

// Run serves the gates until ctx ends. Without TLS there is nothing to do.
func (g Gates) Run(ctx context.Context) error {
	d, err := g.Config.Database(ProbeSB)
	if err != nil {
		return err
	}
	if !d.secure() {
		g.Log.Info("the databases are reached without TLS: no gate is needed")
		<-ctx.Done()
		return nil
	}
	port, err := g.Config.gate(d)
	if err != nil {
		return err
	}
	host, err := d.local(g.Addresses)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.Peers, 0o755); err != nil {
		return fmt.Errorf("make a directory for the gates' sockets: %w", err)
	}
	files := pki.Dir(os.ReadFile, g.Config.AdminTLS)
	all, ctx := errgroup.WithContext(ctx)
	for listen, socket := range map[string]string{netip.AddrPortFrom(host, port).String(): d.Socket, d.raftPort(host): d.peerSocket(host)} {
		all.Go(func() error {
			return gate.Run(ctx, gate.Config{Listen: listen, Unix: socket, CA: files.CA, Cert: files.Cert, Key: files.Key, Logger: g.Log})
		})
	}
	for _, h := range d.Hosts {
		if h == host {
			continue
		}
		all.Go(func() error {
			return gate.Forward(ctx, gate.ForwardConfig{Unix: d.peerSocket(h), Remote: d.raftPort(h), CA: files.CA, Cert: files.Cert, Key: files.Key, Logger: g.Log})
		})
	}
	return all.Wait()
}

// gate checks the southbound database's gate against its remotes, and returns its port.
func (c *Config) gate(sb Database) (port uint16, err error) {
	var hosts []netip.Addr
	for remote := range strings.SplitSeq(c.SBGate, ",") {
		protocol, address, _ := strings.Cut(remote, ":")
		at, err := parseHost(address)
		if err != nil || protocol != "ssl" {
			return 0, fmt.Errorf("--sb-gate %q: %q is not ssl:IP:PORT, with [] around an IPv6 address: by TLS --sb-remote is for nodes, and everybody else comes by the gate", c.SBGate, remote)
		}
		if port != 0 && at.Port() != port || at.Port() == uint16(sb.Port) || at.Port() == uint16(sb.Port+raftOffset) {
			return 0, fmt.Errorf("--sb-gate %q: all of them have one port, which is neither %d nor %d", c.SBGate, sb.Port, sb.Port+raftOffset)
		}
		port, hosts = at.Port(), append(hosts, at.Addr())
	}
	if !slices.Equal(hosts, sb.Hosts) {
		return 0, fmt.Errorf("--sb-gate %q and --sb-remote %q: want the same addresses in the same order: every node that may hold a copy has a gate", c.SBGate, c.SBRemote)
	}
	return port, nil
}

// opened returns nil when this node's gate lets an administrator in, and the database behind it answers.
func (c *Config) opened(ctx context.Context) error {
	d, err := c.Database(ProbeSB)
	if err != nil || !d.secure() {
		return err
	}
	port, err := c.gate(d)
	if err != nil {
		return err
	}
	mine, err := NodeAddresses()
	if err != nil {
		return err
	}
	host, err := d.local(mine)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	dialer := tls.Dialer{Config: pki.Dir(os.ReadFile, c.AdminTLS).ClientTLS([]string{host.String()}, time.Now)}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(host, port).String())
	if err != nil {
		return fmt.Errorf("connect with the gate: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	return errors.Join(answers(conn), conn.Close())
}

// answers asks a database server for nothing: RFC 7047, 4.1.11.
func answers(conn net.Conn) error {
	if err := json.NewEncoder(conn).Encode(map[string]any{"id": 0, "method": "echo", "params": []any{}}); err != nil {
		return fmt.Errorf("ask the database behind the gate: %w", err)
	}
	var answer struct {
		ID *int `json:"id"`
	}
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return fmt.Errorf("the database behind the gate says nothing: %w", err)
	}
	return nil
}
