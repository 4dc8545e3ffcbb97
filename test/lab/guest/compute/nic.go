package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/guest/plumb"
)

const (
	// firstSlot is the first NIC's place on the PCI bus. A NIC has the same there whether the VM was started with it or given it later: a migration's stream speaks of places.
	firstSlot = 0x10
	// letGo is how long a guest may take to let go of a NIC, letGoPoll how often QEMU is asked.
	letGo     = 20 * time.Second
	letGoPoll = 50 * time.Millisecond
)

// backend and device are the two halves of the NIC in a place, as QEMU's options describe them.
func backend(i int, p plumb.Port) string {
	return fmt.Sprintf("tap,id=%s,ifname=%s,script=no,downscript=no", backendName(i), p.Tap)
}

func device(i int, p plumb.Port) string {
	return fmt.Sprintf("virtio-net-pci,id=%s,netdev=%s,addr=%#x,mac=%s,host_mtu=%d,romfile=,%s,%s", deviceName(i), backendName(i), firstSlot+i, p.MAC, p.MTU, announce, offloads)
}

func backendName(i int) string { return fmt.Sprintf("host%d", i) }

func deviceName(i int) string { return fmt.Sprintf("nic%d", i) }

// place returns QEMU of a VM that runs, and the place of a network's NIC.
func (l *launcher) place(network string) (*qemu, int, plumb.Port, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.ports, func(p plumb.Port) bool { return p.Name == network })
	switch {
	case i < 0:
		return nil, 0, plumb.Port{}, fmt.Errorf("network %s is not plumbed", network)
	case l.qemu == nil || l.state != guest.Running:
		return nil, 0, plumb.Port{}, fmt.Errorf("NIC %s: the launcher is %s, want %s", network, l.state, guest.Running)
	}
	return l.qemu, i, l.ports[i], nil
}

// turned: the NIC in a place was given to the VM, or taken from it.
func (l *launcher) turned(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ports = slices.Clone(l.ports)
	l.ports[i].Plugged = !l.ports[i].Plugged
}

// plug gives the VM a NIC.
func (l *launcher) plug(ctx context.Context, network string) (any, error) {
	l.ordered.Lock()
	defer l.ordered.Unlock()
	q, i, p, err := l.place(network)
	if err != nil || p.Plugged {
		return nil, err
	}
	if err := q.monitor(ctx, "netdev_add "+backend(i, p)); err != nil {
		return nil, err
	}
	if err := q.monitor(ctx, "device_add "+device(i, p)); err != nil {
		return nil, errors.Join(err, q.monitor(ctx, "netdev_del "+backendName(i)))
	}
	l.turned(i)
	l.config.Log.Info("plugged", "network", network)
	return nil, nil
}

// unplug takes a NIC from the VM.
func (l *launcher) unplug(ctx context.Context, network string) (any, error) {
	l.ordered.Lock()
	defer l.ordered.Unlock()
	q, i, p, err := l.place(network)
	if err != nil || !p.Plugged {
		return nil, err
	}
	if err := q.monitor(ctx, "device_del "+deviceName(i)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, letGo)
	defer cancel()
	for {
		var there []struct{ Name string }
		if err := q.qmp.Execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &there); err != nil {
			return nil, fmt.Errorf("NIC %s: wait until the guest lets go of it: %w", network, err)
		}
		if !slices.ContainsFunc(there, func(d struct{ Name string }) bool { return d.Name == deviceName(i) }) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("NIC %s: the guest has not let go of it within %s", network, letGo)
		case <-time.After(letGoPoll):
		}
	}
	if err := q.monitor(ctx, "netdev_del "+backendName(i)); err != nil {
		return nil, err
	}
	l.turned(i)
	l.config.Log.Info("unplugged", "network", network)
	return nil, nil
}

// monitor runs a command of QEMU's monitor for people, which takes options as the command line does, and says something only when it has failed.
func (q *qemu) monitor(ctx context.Context, line string) error {
	var said string
	if err := q.qmp.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &said); err != nil {
		return err
	}
	if said = strings.TrimSpace(said); said != "" {
		return fmt.Errorf("QEMU: %s: %s", line, said)
	}
	return nil
}
