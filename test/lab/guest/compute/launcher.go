package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/guest/plumb"
	"github.com/godwit-cni/godwit/test/lab/guest/qmp"
)

// drainTime is how long clients may take to read the last events.
const drainTime = time.Second

// launcher is one pod's.
type launcher struct {
	config  Config
	journal *journal
	console *console
	// life ends with the launcher; servers live by it.
	life    func() context.Context
	servers *errgroup.Group
	// done is closed when the launcher is to end, after status was set.
	done chan struct{}
	once sync.Once

	// ordered is held by whatever starts QEMU or plumbs, one at a time.
	ordered sync.Mutex

	mu       sync.Mutex // for what follows
	status   int
	state    guest.State
	ports    []plumb.Port
	domain   guest.Domain
	incoming *guest.Incoming // nil unless the VM came, or is to come, by migration
	qemu     *qemu
	leaving  bool
}

// Run is a launcher from its start to its end. It returns the exit status of the process. When ctx ends it has the guest shut down, and ends when that has.
func Run(ctx context.Context, c Config) (status int, err error) {
	if err := c.Validate(); err != nil {
		return 1, fmt.Errorf("start the launcher: %w", err)
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	l := &launcher{config: c, journal: newJournal(), console: newConsole(c.Console), done: make(chan struct{}), state: guest.Idle}
	listener, err := listen(life, filepath.Join(c.Dir, guest.APISocket))
	if err != nil {
		return 1, err
	}
	g, life := errgroup.WithContext(life)
	l.servers, l.life = g, func() context.Context { return life }
	server := &http.Server{Handler: l.handler(), ReadHeaderTimeout: drainTime}
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the launcher's clients: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			l.terminate(life)
		case <-l.done:
		case <-life.Done():
			return nil
		}
		<-l.done
		l.journal.close()
		l.console.close()
		drain, cancel := context.WithTimeout(life, drainTime)
		defer cancel()
		_ = server.Shutdown(drain) // clients that do not read are left
		end()
		return nil
	})
	err = g.Wait()
	return l.status, err
}

// terminate does what a pod's end asks for.
func (l *launcher) terminate(ctx context.Context) {
	l.mu.Lock()
	state := l.state
	l.mu.Unlock()
	l.config.Log.Info("the launcher was asked to end", "state", state)
	err := l.leave
	if state == guest.Running {
		err = l.shutdown
	}
	if err := err(ctx); err != nil {
		l.config.Log.Error("cannot end the VM", "err", err)
	}
}

// finish makes the launcher end with that status; the first one counts.
func (l *launcher) finish(status int, state guest.State) {
	l.once.Do(func() {
		l.mu.Lock()
		l.status, l.state = status, state
		l.mu.Unlock()
		close(l.done)
	})
}

// plumb makes the pod's side of the NICs that it does not have yet.
func (l *launcher) plumb(_ context.Context, nics []guest.NIC) ([]guest.Plumbed, error) {
	l.ordered.Lock()
	defer l.ordered.Unlock()
	l.mu.Lock()
	ports := l.ports
	l.mu.Unlock()
	for i := len(ports); i < len(nics); i++ {
		p, err := plumb.NIC(nics[i], i)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
		l.mu.Lock()
		l.ports = ports
		l.mu.Unlock()
		l.journal.add(guest.Event{Type: guest.PlumbingDone, Detail: p.Name})
		l.config.Log.Info("plumbed", "network", p.Name, "binding", p.Binding, "link", p.Link, "mac", p.MAC, "addresses", p.Addresses, "mtu", p.MTU, "dhcp", p.DHCP)
		if p.Lease != nil {
			l.servers.Go(func() error { //nolint:contextcheck // it outlives the request
				return plumb.ServeDHCP(l.life(), p.Bridge, l.config.ResolvConf, *p.Lease, func(summary string) {
					l.journal.add(guest.Event{Type: guest.Leased, Detail: summary})
				})
			})
		}
	}
	return plumbed(ports), nil
}

func plumbed(ports []plumb.Port) []guest.Plumbed {
	var all []guest.Plumbed
	for _, p := range ports {
		all = append(all, p.Plumbed)
	}
	return all
}

// start starts a VM, booting or, with in, receiving.
func (l *launcher) start(ctx context.Context, d guest.Domain, in *guest.Incoming) error {
	l.ordered.Lock()
	defer l.ordered.Unlock()
	l.mu.Lock()
	state, ports := l.state, slices.Clone(l.ports)
	for i := range ports {
		ports[i].Plugged = in == nil || !slices.Contains(in.Later, ports[i].Name)
	}
	l.mu.Unlock()
	if state != guest.Idle {
		return fmt.Errorf("the launcher is %s: want %s: it runs one VM in its life", state, guest.Idle)
	}
	args, begins := arguments(l.config, d, ports), guest.Running
	if in != nil {
		begins, args = guest.Receiving, append(args, "-incoming", "defer")
		if in.HoldResume {
			args = append(args, "-S")
		}
	}
	l.mu.Lock()
	l.domain, l.incoming, l.state, l.ports = d, in, begins, ports
	l.mu.Unlock()
	l.journal.add(guest.Event{Type: guest.QEMUStarted})
	q, err := l.startQEMU(l.life(), args) //nolint:contextcheck // it outlives the request
	if err != nil {
		l.journal.add(guest.Event{Type: guest.QEMUEnded, Detail: err.Error()})
		l.finish(1, guest.Ended)
		return err
	}
	l.mu.Lock()
	l.qemu = q
	l.mu.Unlock()
	l.servers.Go(func() error { l.await(q); return nil })
	return l.prepare(ctx, q, in)
}

// await ends the launcher when QEMU has ended.
func (l *launcher) await(q *qemu) {
	<-q.ended
	status, detail := l.verdict(q)
	l.config.Log.Info("QEMU has ended", "status", status, "detail", detail)
	l.journal.add(guest.Event{Type: guest.QEMUEnded, Detail: detail})
	l.finish(status, guest.Ended)
}

// verdict is the status with which the launcher ends after QEMU has.
func (l *launcher) verdict(q *qemu) (status int, detail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	saw := func(what guest.EventType) bool {
		return l.journal.saw(func(e guest.Event) bool { return e.Type == what })
	}
	switch {
	case l.leaving:
		return 0, "it was asked to"
	case q.exit == nil && saw(guest.Off):
		return 0, "the guest was switched off"
	case l.incoming != nil && (!saw(guest.Resumed) || l.incoming.KillOn != ""):
		return l.incoming.FailStatus, fmt.Sprintf("the migration failed: %v", q.exit)
	}
	return 1, fmt.Sprintf("unexpectedly: %v", q.exit)
}

// onEvent notes what QEMU tells.
func (l *launcher) onEvent(q *qemu, e qmp.Event) {
	note := guest.Event{Type: guest.EventType(e.Name), Time: time.Now(), QEMU: e.Time}
	var data struct {
		Status guest.MigrationStatus `json:"status"`
		Reason string                `json:"reason"`
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		data.Reason = "" // events without data
	}
	note.Status, note.Detail = data.Status, data.Reason
	switch note.Type {
	case guest.Stopped, guest.Resumed, guest.MigrationChanged, guest.Off:
	default:
		return // of no interest: RTC changes, NIC filters, …
	}
	l.mu.Lock()
	in := l.incoming
	l.state = after(l.state, note, in)
	l.mu.Unlock()
	if in != nil && in.KillOn == note.Type && in.KillOnStatus == note.Status {
		_ = q.process.Kill() // it may have ended
	}
	l.journal.add(note)
	l.config.Log.Info("event", "type", note.Type, "status", note.Status, "detail", note.Detail)
}

// after is the launcher's state after an event.
func after(s guest.State, e guest.Event, in *guest.Incoming) guest.State {
	switch {
	case e.Type == guest.Resumed:
		return guest.Running
	case e.Type == guest.Stopped && s == guest.Running:
		return guest.Paused
	case e.Type == guest.MigrationChanged && e.Status == guest.Completed && s == guest.Receiving && in != nil && in.HoldResume:
		return guest.Paused
	case e.Type == guest.MigrationChanged && e.Status == guest.Completed && s == guest.Paused:
		return guest.Migrated
	}
	return s
}
