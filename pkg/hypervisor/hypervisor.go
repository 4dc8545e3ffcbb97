// Package hypervisor tells when a migration stops a VM in its launcher pod, and when the VM runs there again: events of libvirt, which KubeVirt has in each launcher, or of QEMU itself where
// there is no libvirt. It asks nothing of the launcher but to be told, and takes nothing that it says on trust: what comes is bounded, and paths do not lead out of the pod's volume.
package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Event is something that happened to the VM.
type Event int

// The events.
const (
	// Stopped: a migration has stopped the VM's processors, to go on elsewhere. A VM that is paused by its user is not.
	Stopped Event = iota + 1
	// Resumed: the processors run, again after Stopped.
	Resumed
)

// String is for logs.
func (e Event) String() string {
	switch e {
	case Stopped:
		return "stopped"
	case Resumed:
		return "resumed"
	}
	return fmt.Sprintf("event %d", int(e))
}

const (
	// volume is of KubeVirt's launchers (pkg/virt-controller/services there); libvirtSocket is virtqemud's in it.
	volume        = "libvirt-runtime"
	libvirtSocket = "virtqemud-sock"
	// QMPSocket is where a QEMU without libvirt has a monitor for the agent in the same volume: the lab's.
	QMPSocket = "godwit-qmp.sock"
	// setupTimeout bounds all that is said before the first event.
	setupTimeout = 5 * time.Second
)

// ErrNone says that the pod has no hypervisor that could be asked: it is no launcher, or has not got that far.
var ErrNone = errors.New("no socket of libvirt or QEMU")

// Launcher is a launcher pod on this node.
type Launcher struct {
	// Pods is the kubelet's directory of pods, as this process sees it.
	Pods string
	// UID is the pod's.
	UID string
}

// source is a connection from which events come.
type source interface {
	// begin says what is needed to be told of events.
	begin() error
	// next waits for the next event. Something else that was told is 0.
	next() (Event, error)
}

// Watch tells events of the launcher's VM from its return on, until ctx ends or the launcher does: then the channel is closed. The error wraps ErrNone if there is nobody who could tell.
func Watch(ctx context.Context, l Launcher) (<-chan Event, error) {
	conn, of, err := connect(ctx, l)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	s := of(conn)
	if err := begin(conn, s); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("launcher %s: %w", l.UID, err), conn.Close())
	}
	events := make(chan Event, 1)
	go func() {
		defer close(events)
		defer func() { stop(); _ = conn.Close() }()
		for {
			e, err := s.next()
			if err != nil {
				return // the launcher has ended, or ctx: the caller asks again if it should not have
			}
			if e == 0 {
				continue
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events, nil
}

func begin(conn net.Conn, s source) error {
	if err := conn.SetDeadline(time.Now().Add(setupTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if err := s.begin(); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lift deadline: %w", err)
	}
	return nil
}

// connect finds whom to ask.
func connect(ctx context.Context, l Launcher) (net.Conn, func(net.Conn) source, error) {
	conn, err := dial(ctx, l, libvirtSocket)
	if err == nil {
		return conn, newLibvirt, nil
	}
	if !errors.Is(err, ErrNone) {
		return nil, nil, err
	}
	conn, err = dial(ctx, l, QMPSocket)
	return conn, newQMP, err
}
