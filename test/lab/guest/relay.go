package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Relay carries a migration's stream from a source's launcher to a target's, as virt-handler's proxies do. Its methods are safe for concurrent use.
type Relay struct {
	listener net.Listener
	target   string
	bytes    atomic.Int64
	done     sync.WaitGroup
	cancel   context.CancelFunc

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

// NewRelay listens at a source's OutgoingSocket and connects what comes there to a target's IncomingSocket; both are given by their launchers' directories as
// seen by this process. It must exist before Migrate, and be closed; it ends with ctx, too.
func NewRelay(ctx context.Context, source, target string) (*Relay, error) {
	l, err := listenUnix(ctx, source, OutgoingSocket)
	if err != nil {
		return nil, fmt.Errorf("relay a migration: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &Relay{listener: l, target: target, cancel: cancel}
	context.AfterFunc(ctx, r.Cut)
	r.done.Go(func() { r.accept(ctx) })
	return r, nil
}

func (r *Relay) accept(ctx context.Context) {
	for {
		in, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		out, err := dialUnix(ctx, r.target, IncomingSocket)
		if err != nil {
			_ = in.Close() // the source sees its stream break, which is what it would see
			continue
		}
		if !r.keep(in, out) {
			continue
		}
		r.done.Go(func() { r.pipe(out, in, &r.bytes) })
		r.done.Go(func() { r.pipe(in, out, nil) })
	}
}

// keep registers connections, or closes them if the relay is cut.
func (r *Relay) keep(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		closeAll(conns)
		return false
	}
	r.conns = append(r.conns, conns...)
	return true
}

// pipe copies one direction to its end and passes the end on.
func (r *Relay) pipe(to, from net.Conn, count *atomic.Int64) {
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if count != nil {
				count.Add(int64(n))
			}
			if _, err := to.Write(buf[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			break
		}
	}
	if u, ok := to.(*net.UnixConn); ok {
		_ = u.CloseWrite()
	}
}

// Cut breaks the stream, and refuses others: the network between the nodes has gone.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = true
	closeAll(r.conns)
	r.conns = nil
}

// Bytes is how many bytes went to the target.
func (r *Relay) Bytes() int64 { return r.bytes.Load() }

// Close ends the relay.
func (r *Relay) Close() error {
	r.cancel()
	err := r.listener.Close()
	r.Cut()
	r.done.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("end the relay of a migration: %w", err)
	}
	return nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// dialUnix connects to a socket in a directory whose path may be longer than a socket's may be: the kernel is given the directory by its descriptor.
func dialUnix(ctx context.Context, dir, name string) (net.Conn, error) {
	short, closeDir, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer closeDir()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(short, name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", filepath.Join(dir, name), err)
	}
	return conn, nil
}

// listenUnix is dialUnix for a listener. What was at the name before is replaced.
func listenUnix(ctx context.Context, dir, name string) (net.Listener, error) {
	short, closeDir, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer closeDir()
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", filepath.Join(short, name))
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", filepath.Join(dir, name), err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // by a path that is not valid any more
	}
	return l, nil
}

// openDir returns a short path of a directory, good until closeDir is called.
func openDir(dir string) (short string, closeDir func(), err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() { _ = unix.Close(fd) }, nil
}
