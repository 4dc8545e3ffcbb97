package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/errand"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// nobody is the user and the group that tcpdump runs as: it reads what anybody on the network likes to send, and this container has all of the node's privileges.
const nobody = 65534

// lastWords is how long tcpdump may take to say what it has counted, once it is told to end.
const lastWords = 2 * time.Second

// ErrLinkGone says that the link that was looked at is gone: its pod has ended, or the VM has left.
var ErrLinkGone = errors.New("the link is gone")

// Tcpdump is an errand of `kubectl ovn tcpdump`: tcpdump on the link of a port of this node.
type Tcpdump struct {
	// OVSEndpoint is the local Open_vSwitch database.
	OVSEndpoint string
	Port        ident.PortName
	// Program is tcpdump, Args what it is called with, besides the link.
	Program string
	Args    []string
	// In says that somebody looks, with a word at least every Silence; its end, or silence, is the errand's.
	In       io.Reader
	Silence  time.Duration
	Out, Err io.Writer
}

// Run waits until somebody has plugged the port in on this node, and runs tcpdump on its link until that ends, the link goes (ErrLinkGone), or nobody looks any more,
// which is no error. An *exec.ExitError is tcpdump's.
func (d Tcpdump) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		d.listen(ctx)
		cancel()
	}()
	link, err := d.link(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // nobody looks any more
		}
		return err
	}
	err = d.look(ctx, link)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // told to end
	}
	if _, gone := net.InterfaceByName(link); gone != nil {
		return fmt.Errorf("%w: %s of port %s", ErrLinkGone, link, d.Port)
	}
	return err
}

// listen returns when nobody looks any more.
func (d Tcpdump) listen(ctx context.Context) {
	said := make(chan struct{})
	go func() {
		defer close(said)
		word := make([]byte, 64)
		for {
			if _, err := d.In.Read(word); err != nil {
				return
			}
			select {
			case said <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	silence := time.NewTimer(d.Silence)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-silence.C:
			return
		case _, more := <-said:
			if !more {
				return
			}
			silence.Reset(d.Silence)
		}
	}
}

// link waits for the port's.
func (d Tcpdump) link(ctx context.Context) (string, error) {
	db, err := ovs.Connect(ctx, ovs.Config{Endpoint: d.OVSEndpoint, Logger: slog.New(slog.NewTextHandler(d.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return "", err
	}
	defer db.Close()
	port, err := db.WaitPort(ctx, d.Port)
	if err != nil {
		return "", err
	}
	if _, err := net.InterfaceByName(port.Name); err != nil {
		return "", fmt.Errorf("%w: %s of port %s", ErrLinkGone, port.Name, d.Port)
	}
	return port.Name, nil
}

// look runs tcpdump, as nobody, with the one privilege to see packets. It ends with ctx, and with this process, however that ends.
func (d Tcpdump) look(ctx context.Context, link string) error {
	cmd := exec.CommandContext(ctx, d.Program, append([]string{"-i", link}, d.Args...)...)
	cmd.Stdout, cmd.Stderr = d.Out, d.Err
	cmd.Env = append(os.Environ(), "TZ=UTC") // on all nodes alike
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = lastWords
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: []uintptr{unix.CAP_NET_RAW}, Pdeathsig: syscall.SIGKILL,
	}
	done := make(chan error, 1)
	go func() { // on one thread from its start to its end: Pdeathsig is about the thread
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("%s on %s: %w", d.Program, link, err)
	}
	return nil
}

// ExitCode is what the errand's process exits with.
func (d Tcpdump) ExitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrLinkGone):
		return errand.ExitGone
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	return 1
}
