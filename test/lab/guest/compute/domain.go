package compute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

const (
	// askTimeout bounds the answer to a question of a QEMU that may be frozen.
	askTimeout = time.Second
	// sumPoll is how often QEMU is asked for a sum that it is about to make.
	sumPoll = 2 * time.Millisecond
	// noLimit is more bytes a second than any network has; QEMU's own default is 128 MiB.
	noLimit = 1 << 40
)

// errNoVM says that there is nothing to act on.
var errNoVM = errors.New("the launcher has no QEMU: want start or incoming first")

// running is the QEMU that there is.
func (l *launcher) running() (*qemu, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.qemu == nil {
		return nil, errNoVM
	}
	return l.qemu, nil
}

// execute runs one command of QEMU's.
func (l *launcher) execute(ctx context.Context, command string, arguments any) error {
	q, err := l.running()
	if err != nil {
		return err
	}
	return q.qmp.Execute(ctx, command, arguments, nil)
}

type capability struct {
	Capability string `json:"capability"`
	State      bool   `json:"state"`
}

func capabilities(states map[string]bool) map[string][]capability {
	var list []capability
	for name, state := range states {
		list = append(list, capability{name, state})
	}
	return map[string][]capability{"capabilities": list}
}

// prepare readies a QEMU that has just started.
func (l *launcher) prepare(ctx context.Context, q *qemu, in *guest.Incoming) error {
	if in == nil {
		return nil
	}
	caps := capabilities(map[string]bool{"events": true, "return-path": true, "postcopy-ram": in.PostCopy})
	if err := q.qmp.Execute(ctx, "migrate-set-capabilities", caps, nil); err != nil {
		return err
	}
	socket := filepath.Join(l.config.Dir, guest.IncomingSocket)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("make room for QEMU's socket: %w", err)
	}
	return q.qmp.Execute(ctx, "migrate-incoming", map[string]string{"uri": "unix:" + socket}, nil)
}

// migrate begins to send the VM.
func (l *launcher) migrate(ctx context.Context, m guest.Migration) error {
	// With a return path the source hears whether the target could load everything, and takes the VM back if not.
	caps := capabilities(map[string]bool{
		"events": true, "return-path": true, "auto-converge": false, "postcopy-ram": m.PostCopy, "pause-before-switchover": m.HoldBeforeSwitchover,
	})
	if err := l.execute(ctx, "migrate-set-capabilities", caps); err != nil {
		return err
	}
	parameters := map[string]int64{"max-bandwidth": noLimit, "max-postcopy-bandwidth": m.PostCopyBandwidth}
	if m.Bandwidth > 0 {
		parameters["max-bandwidth"] = m.Bandwidth
	}
	if m.DowntimeLimit > 0 {
		parameters["downtime-limit"] = max(1, m.DowntimeLimit.Milliseconds())
	}
	if err := l.execute(ctx, "migrate-set-parameters", parameters); err != nil {
		return err
	}
	return l.execute(ctx, "migrate", map[string]string{"uri": "unix:" + filepath.Join(l.config.Dir, guest.OutgoingSocket)})
}

func (l *launcher) continueMigration(ctx context.Context) error {
	return l.execute(ctx, "migrate-continue", map[string]guest.MigrationStatus{"state": guest.PreSwitchover})
}

func (l *launcher) shutdown(ctx context.Context) error {
	return l.execute(ctx, "system_powerdown", nil)
}

// leave ends the launcher with status 0, by ending QEMU if there is one.
func (l *launcher) leave(context.Context) error {
	l.mu.Lock()
	l.leaving = true
	q := l.qemu
	l.mu.Unlock()
	if q == nil {
		l.finish(0, guest.Ended)
		return nil
	}
	return q.signal(syscall.SIGKILL) // as libvirt does: QEMU has nothing to save
}

// signal sends a signal to QEMU, which may have ended.
func (q *qemu) signal(s os.Signal) error {
	if err := q.process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal QEMU: %w", err)
	}
	return nil
}

func (l *launcher) send(s os.Signal) error {
	q, err := l.running()
	if err != nil {
		return err
	}
	return q.signal(s)
}

// report is the launcher's status; what QEMU does not answer in time is left out, unless it is ctx that ends.
func (l *launcher) report(ctx context.Context) (guest.Status, error) {
	l.mu.Lock()
	s := guest.Status{State: l.state, Domain: l.domain, NICs: plumbed(l.ports)}
	q := l.qemu
	l.mu.Unlock()
	if q == nil {
		return s, nil
	}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var run struct {
		Status string `json:"status"`
	}
	if q.qmp.Execute(asking, "query-status", nil, &run) == nil {
		s.QEMU = run.Status
	}
	whole := func(migrationAnswer) bool { return true }
	if s.State == guest.Migrated {
		// QEMU announces a migration's end before it has added up how long it took.
		whole = func(m migrationAnswer) bool { return m.TotalTime > 0 }
	}
	s.Migration = q.migration(asking, whole)
	return s, ctx.Err()
}

// migration asks QEMU for the last migration, until ctx ends or the answer is whole; nil if there was none or QEMU does not answer.
func (q *qemu) migration(ctx context.Context, whole func(migrationAnswer) bool) *guest.MigrationInfo {
	for {
		var m migrationAnswer
		if q.qmp.Execute(ctx, "query-migrate", nil, &m) != nil || m.Status == "" {
			return nil
		}
		if whole(m) {
			return m.info()
		}
		select {
		case <-ctx.Done():
			return m.info()
		case <-time.After(sumPoll):
		}
	}
}

// migrationAnswer is QEMU's of query-migrate.
type migrationAnswer struct {
	Status           guest.MigrationStatus `json:"status"`
	TotalTime        int64                 `json:"total-time"`
	Downtime         int64                 `json:"downtime"`
	ExpectedDowntime int64                 `json:"expected-downtime"`
	ErrorDesc        string                `json:"error-desc"`
	RAM              struct {
		Transferred    int64 `json:"transferred"`
		Remaining      int64 `json:"remaining"`
		DirtySyncCount int64 `json:"dirty-sync-count"`
	} `json:"ram"`
}

func (m migrationAnswer) info() *guest.MigrationInfo {
	downtime := m.Downtime
	if m.Status == guest.Active {
		downtime = m.ExpectedDowntime
	}
	return &guest.MigrationInfo{
		Status: m.Status, Total: time.Duration(m.TotalTime) * time.Millisecond, Downtime: time.Duration(downtime) * time.Millisecond,
		Transferred: m.RAM.Transferred, Remaining: m.RAM.Remaining, Passes: m.RAM.DirtySyncCount, Error: m.ErrorDesc,
	}
}
