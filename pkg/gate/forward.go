package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// ForwardConfig says which gate a unix socket stands for.
type ForwardConfig struct {
	// Unix is the socket to listen on, which root alone may use. One that an earlier process has left is replaced.
	Unix string
	// Remote is the gate's HOST:PORT.
	Remote string
	// CA has the authorities of the gate's certificate, Cert and Key are shown to it.
	CA, Cert, Key string
	Logger        *slog.Logger
}

// Validate reports every error in c.
func (c ForwardConfig) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Remote); err != nil {
		errs = append(errs, fmt.Errorf("gate: remote %q: want HOST:PORT", c.Remote))
	}
	return errors.Join(append(errs, validPaths(map[string]string{"socket": c.Unix, "authority": c.CA, "certificate": c.Cert, "key": c.Key}))...)
}

// Forward connects whoever connects to the socket with the gate, until ctx ends. A gate that does not answer is an error of the connection, and logged.
func Forward(ctx context.Context, c ForwardConfig) error {
	if err := c.Validate(); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(c.Remote)
	if err != nil {
		return err
	}
	if err := os.Remove(c.Unix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("gate: replace socket %s: %w", c.Unix, err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", c.Unix)
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	if err := os.Chmod(c.Unix, 0o600); err != nil {
		return errors.Join(fmt.Errorf("gate: %w", err), l.Close())
	}
	files := &pki.Files{Read: os.ReadFile, CA: c.CA, Cert: c.Cert, Key: c.Key}
	dialer := &tls.Dialer{NetDialer: dialer(), Config: files.ClientTLS([]string{host}, time.Now)}
	return door{
		log:  c.Logger,
		know: func(_ context.Context, conn net.Conn) (half, error) { return conn.(*net.UnixConn), nil },
		connect: func(ctx context.Context) (half, error) {
			remote, err := dialer.DialContext(ctx, "tcp", c.Remote)
			if err != nil {
				return nil, fmt.Errorf("connect with the gate %s: %w", c.Remote, err)
			}
			return remote.(*tls.Conn), nil
		},
	}.serve(ctx, l)
}

func dialer() *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: alive()}
}
