package lab

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/test/lab/boot"
)

// Node is one of a lab's nodes.
type Node struct {
	lab  *Lab
	name string
}

// Node returns a node by its name; its methods fail if there is none.
func (l *Lab) Node(name string) *Node { return &Node{lab: l, name: name} }

// Stop shuts the node down: all of its processes are asked to end. Its disk stays.
func (n *Node) Stop(ctx context.Context) error { return n.end(ctx, unix.SIGTERM) }

// Crash is a power cut: the node's cables go dead and all of its processes are killed at once. Its disk stays.
func (n *Node) Crash(ctx context.Context) error { return n.end(ctx, unix.SIGKILL) }

// Start boots a node that does not run, and returns when it is Ready; in a lab without a CNI, when its kubelet reports.
func (n *Node) Start(ctx context.Context) error {
	err := n.lab.locked(ctx, func() error {
		spec, err := n.spec()
		if err != nil {
			return err
		}
		return n.lab.ensureMachine(ctx, spec)
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	// What the API server says of the node may be from before.
	if err := n.lab.awaitService(ctx, n.name, "kubelet"); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	return n.lab.awaitNodes(ctx, nodesWith(n.lab.cni()))
}

// spec is the node's as it was made by Up.
func (n *Node) spec() (*boot.Spec, error) {
	if names := n.lab.NodeNames(); !slices.Contains(names, n.name) {
		return nil, fmt.Errorf("there is no node %s: the lab's nodes are %v", n.name, names)
	}
	return boot.ReadSpec(n.lab.specPath(n.name))
}

func (n *Node) end(ctx context.Context, sig unix.Signal) error {
	err := n.lab.locked(ctx, func() error {
		if _, err := n.spec(); err != nil {
			return err
		}
		if err := n.lab.record(n.name, func(m *machine) { m.Stopped = true }); err != nil {
			return err
		}
		if hub := n.lab.machine(hubName).Process; sig == unix.SIGKILL && hub.alive() {
			if err := disconnect(hub, n.name, boot.Node); err != nil {
				return err
			}
		}
		return n.lab.stopMachine(ctx, n.name, sig)
	})
	if err != nil {
		return fmt.Errorf("stop %s: %w", n.name, err)
	}
	return nil
}

func (l *Lab) cni() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.CNI
}
