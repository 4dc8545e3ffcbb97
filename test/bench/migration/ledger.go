package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// write is a change of the VM's row in the northbound database, when this program was told of it.
type write struct {
	at                  time.Time
	requested, strategy string
}

// pair says whether the row asks for two chassis.
func (w write) pair() bool { return strings.Contains(w.requested, ",") }

// bound is a change of the VM's Port_Binding in the southbound database, when this program was told of it.
type bound struct {
	at time.Time
	// activated is the list of chassis where the port was activated.
	activated string
}

// ledger notes what happens to the VM's port in OVN's databases. Each change of the row is one transaction: the server tells of it as such, unless two came faster
// than it could tell.
type ledger struct {
	port ident.PortName
	sb   *ovn.SB

	mu     sync.Mutex
	writes []write
	bounds []bound
	errs   []error
}

// keep begins to note. Close the ledger in the end.
func keep(ctx context.Context, s *passage.Scene) (*ledger, error) {
	sb, err := ovn.ConnectSB(ctx, ovn.Config{Endpoints: []string{s.Lab.SB()}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	l := &ledger{port: ident.VMPort(s.Namespace, s.VM.Name, ident.DefaultNetwork), sb: sb}
	ours := func(namespace, name string) bool { return namespace == s.Namespace && name == s.VM.Name }
	s.NB.WatchPorts(func(namespace, name, kind string) {
		if kind == ident.OwnerVM && ours(namespace, name) {
			l.written(ctx, s.NB, time.Now())
		}
	})
	sb.Watch(func(namespace, name string) {
		if ours(namespace, name) {
			l.bind(ctx, time.Now())
		}
	}, func() {})
	return l, nil
}

func (l *ledger) close() { l.sb.Close() }

func (l *ledger) written(ctx context.Context, nb *ovn.NB, at time.Time) {
	row, err := nb.Port(ctx, l.port)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("read LogicalSwitchPort %s: %w", l.port, err))
		return
	}
	if row != nil {
		l.writes = append(l.writes, write{at: at, requested: row.Options[ident.OptionRequestedChassis], strategy: row.Options[ident.OptionActivationStrategy]})
	}
}

func (l *ledger) bind(ctx context.Context, at time.Time) {
	row, err := l.sb.Binding(ctx, l.port)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errs = append(l.errs, err)
		return
	}
	if row != nil {
		l.bounds = append(l.bounds, bound{at: at, activated: row.Options[ident.BindingActivated]})
	}
}

// since is what was noted from a time on.
func (l *ledger) since(from time.Time) (noted, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n noted
	for _, w := range l.writes {
		if !w.at.Before(from) {
			n.writes = append(n.writes, w)
		}
	}
	for _, b := range l.bounds {
		if !b.at.Before(from) {
			n.bounds = append(n.bounds, b)
		}
	}
	return n, errors.Join(l.errs...)
}

// noted is what was noted of one migration.
type noted struct {
	writes []write
	bounds []bound
}

// paired is when the row asked for both chassis first, zero if it never did; strategy is what it said of the activation then.
func (n noted) paired() (at time.Time, strategy string) {
	if i := slices.IndexFunc(n.writes, write.pair); i >= 0 {
		return n.writes[i].at, n.writes[i].strategy
	}
	return time.Time{}, ""
}

// activated is when the southbound database said that a chassis was activated, zero if it never did.
func (n noted) activated(chassis string) time.Time {
	for _, b := range n.bounds {
		if slices.Contains(strings.Split(b.activated, ","), chassis) {
			return b.at
		}
	}
	return time.Time{}
}

// obeyed says whether the ports were moved by the means that was asked for.
func (n noted) obeyed(kind migration.Baseline) error {
	at, strategy := n.paired()
	want := map[migration.Baseline]string{"": string(v1alpha1.ActivationRARP), silent: string(v1alpha1.ActivationRARP)}[kind]
	switch {
	case kind == migration.BaselineFlip && !at.IsZero():
		return fmt.Errorf("%s: the row asked for two chassis, want one all the time: does the controller know the annotation %s?", title(kind), migration.AnnotationBaseline)
	case kind == migration.BaselineFlip:
		return nil
	case at.IsZero():
		return fmt.Errorf("%s: the row never asked for two chassis; it said %+v", title(kind), n.writes)
	case strategy != want:
		return fmt.Errorf("%s: the row had activation-strategy=%q, want %q: does the controller know the annotation %s?", title(kind), strategy, want, migration.AnnotationBaseline)
	}
	return nil
}
