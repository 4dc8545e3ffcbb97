package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/godwit-cni/godwit/test/bench/central"
)

const (
	// rounds is how often each kind of new leader is measured.
	rounds = 3
	// standbyTries is how often a controller is started that is to stand by.
	standbyTries = 3
)

// newLeaders breaks rows of policies, which no controller that leads looks at while it does, and measures how long new leaders need until they are right again: one
// that stood by, and one that is started where none runs.
func (b *bench) newLeaders(ctx context.Context, out result) error {
	for round := range rounds {
		standby, err := b.standby(ctx, round)
		if err != nil {
			return err
		}
		old := b.leader
		took, did, err := b.mended(ctx, func() (time.Time, error) {
			at := time.Now()
			old.Signal(syscall.SIGTERM)
			b.leader = standby
			return at, nil
		})
		if err != nil {
			return fmt.Errorf("a controller that stood by: %w", err)
		}
		old.Stop()
		out[mendedStandby] = max(out[mendedStandby], seconds(took))
		out[mendedOperations] = max(out[mendedOperations], float64(did.About))
	}
	for round := range rounds {
		b.leader.Stop()
		took, _, err := b.mended(ctx, func() (time.Time, error) {
			var err error
			b.leader, err = b.cl.Controller(ctx, fmt.Sprintf("alone-%s-%d", time.Now().Format("150405"), round), b.counted)
			if err != nil {
				return time.Time{}, err
			}
			return b.leader.Started, nil
		})
		if err != nil {
			return fmt.Errorf("a controller that is started: %w", err)
		}
		out[mendedAlone] = max(out[mendedAlone], seconds(took))
	}
	u, err := b.leader.Usage()
	out[rssStarted], out[peakStarted] = u.RSS, u.Peak
	return errors.Join(err, b.leader.AwaitReady(ctx))
}

// standby starts a controller that stands by. One that has not read the databases in time ends, as it should; it is started again, as a cluster would.
func (b *bench) standby(ctx context.Context, round int) (*central.Replica, error) {
	var failed []error
	for range standbyTries {
		c, err := b.cl.Controller(ctx, fmt.Sprintf("standby-%s-%d", time.Now().Format("150405"), round), b.counted)
		if err != nil {
			return nil, err
		}
		if err = c.AwaitReady(ctx); err == nil {
			return c, nil
		}
		c.Stop()
		b.log.Warn("a controller that should stand by is started again", "err", err)
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// mended breaks rows and changes the leader; it returns how long after that they were right again, and what was written for it.
func (b *bench) mended(ctx context.Context, change func() (time.Time, error)) (time.Duration, central.Totals, error) {
	acls := b.w.nb.countOfACLs()
	set, size, err := b.damage(ctx)
	if err != nil {
		return 0, central.Totals{}, err
	}
	if err := pause(ctx); err != nil {
		return 0, central.Totals{}, err
	}
	before := b.ledger.Read()
	start, err := change()
	if err != nil {
		return 0, central.Totals{}, err
	}
	err = b.await(ctx, "the rows of policies are right again", func() bool { return b.w.nb.countOfACLs() == acls && b.w.nb.size(set) == size })
	if err != nil {
		return 0, central.Totals{}, fmt.Errorf("%w: there are %d ACLs, want %d; address set %s has %d addresses, want %d", err, b.w.nb.countOfACLs(), acls, set, b.w.nb.size(set), size)
	}
	took := time.Since(start)
	if err := pause(ctx); err != nil {
		return 0, central.Totals{}, err
	}
	return took, b.ledger.Read().Since(before), nil
}

// damage empties an address set and a port group's list of ACLs, as somebody might by hand, or a backup that is put back.
func (b *bench) damage(ctx context.Context) (set string, size int, err error) {
	p := placesOf(b.all, b.spaces, newPod(namespaceName(0), "sample", "", firstApp))
	i := slices.IndexFunc(p.groups, func(g string) bool { return !strings.HasPrefix(g, "godwit_np_") })
	j := slices.IndexFunc(p.sets[0], func(s string) bool { return b.w.nb.size(s) > 0 })
	if i < 0 || j < 0 {
		return "", 0, fmt.Errorf("no rows to break: groups %v, sets %v", p.groups, p.sets[0])
	}
	set, acls := p.sets[0][j], b.w.nb.countOfACLs()
	size = b.w.nb.size(set)
	_, err = b.cl.Command(ctx, "ovn-nbctl", "--db="+b.cl.NB, "--type=port-group", "acl-del", p.groups[i], "--", "clear", "address_set", set, "addresses")
	if err != nil {
		return "", 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return set, size, central.Poll(ctx, "the rows are broken", func() (bool, error) { return b.w.nb.countOfACLs() < acls && b.w.nb.size(set) == 0, nil })
}
