package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/pkg/peer"
)

const (
	// passEvery is the time between two looks at the source's zones: a connection that begins later than that before the last one is seen by the last one. A look takes no more than a part of the time, one in passShare.
	passEvery = 300 * time.Millisecond
	passShare = 4
	// passTimeout bounds a look with all that is told of it, lastPassTimeout the last one. The controller does not wait so long, but it does not begin to wait before the VM runs on the target either, and a table of
	// many entries, of which all is read before Linux 6.8, takes its time. When the ports are the target's alone it takes nothing any more.
	passTimeout     = 30 * time.Second
	lastPassTimeout = 3 * time.Second
	lastPassTries   = 2
	// refusedFor is for how long a target may refuse one port's connections and take another's before these are counted as left: OVN gives out zones one after another.
	refusedFor = 3 * time.Second
)

// errNoZone is that of a port whose zone OVN has not given out yet, or not any more.
var errNoZone = errors.New("OVN has no connection tracking zone for the port here")

// courier tells a migration's target what the source's connection tracking knows of the VM's connections: again and again while the VM is copied, and once more when it was stopped, or runs on the target.
type courier struct {
	h    *handoff
	w    *watch
	line *line
	// last is closed when nothing changes on the source any more.
	last chan struct{}
	once sync.Once

	// table, conn, and passes and taken, which belong to what conn has told, are run's: taken are the zones of which the target has taken something. keep has a connection outlive times in which there is nothing to tell, until the function that it returns is called: leave.
	table  entries
	conn   *peer.Conn
	passes map[string]*conntrack.Passes
	taken  map[string]bool
	keep   func(*peer.Conn) context.CancelFunc
	leave  context.CancelFunc
	// refusing is since when the target has refused a port's connections, zero if it does not.
	refusing time.Time

	mu   sync.Mutex
	told v1alpha1.Connections
}

func newCourier(h *handoff, l *line) *courier {
	return &courier{h: h, w: l.w, line: l, last: make(chan struct{})}
}

// finish has the next look be the last.
func (c *courier) finish() { c.once.Do(func() { close(c.last) }) }

// connections is nil before anything was told.
func (c *courier) connections() *v1alpha1.Connections {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told.Began == nil && c.told.Ended == nil {
		return nil
	}
	told := c.told
	return &told
}

// run goes on until the last look, or until ctx ends.
func (c *courier) run(ctx context.Context) {
	defer c.close()
	c.keep = func(conn *peer.Conn) context.CancelFunc {
		keeping, leave := context.WithCancel(ctx)
		c.w.readers.Go(func() { _ = conn.Keep(keeping) }) // what it fails with the next pass fails with too
		return leave
	}
	looking, leave := c.untilLast(ctx)
	defer leave()
	said := ""
	for ctx.Err() == nil {
		if c.ending() {
			c.end(ctx)
			return
		}
		start := time.Now()
		left, err := c.pass(ctx, looking, passTimeout)
		if text := fmt.Sprint(err); err != nil && looking.Err() == nil && text != said {
			said = text
			c.w.log.Info("the VM's connections are not handed over yet", "error", err)
		}
		if err == nil {
			c.note(func(t *v1alpha1.Connections) {
				t.Left = int64(left)
				if t.Began == nil {
					t.Began = microNow()
				}
			})
		}
		select {
		case <-ctx.Done():
		case <-c.last:
		case <-time.After(max(passEvery, (passShare-1)*time.Since(start))):
		}
	}
}

// untilLast is ctx until the look that follows is the last: what is read of the zones by then is of no use.
func (c *courier) untilLast(ctx context.Context) (context.Context, context.CancelFunc) {
	looking, leave := context.WithCancel(ctx)
	c.w.readers.Go(func() {
		select {
		case <-c.last:
			leave()
		case <-looking.Done():
		}
	})
	return looking, leave
}

// end looks for the last time, and says so whatever comes of it.
func (c *courier) end(ctx context.Context) {
	start := time.Now()
	var left int
	var err error
	ctx, cancel := context.WithTimeout(ctx, lastPassTimeout)
	defer cancel()
	for range lastPassTries {
		if left, err = c.pass(ctx, ctx, lastPassTimeout); err == nil || errors.Is(err, peer.ErrRefused) || ctx.Err() != nil {
			break
		}
	}
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		c.w.log.Warn("the VM's connections could not be handed over to the end: those that the target does not know live as far as Services and policies let them", "error", err, "after", time.Since(start))
	}
	c.note(func(t *v1alpha1.Connections) {
		if t.Ended = microNow(); err == nil {
			t.Left = int64(left)
		}
	})
	c.h.entries.WithLabelValues(handoffLeft).Add(float64(left))
	if err == nil {
		c.w.log.Info("the VM's connections are handed over", "took", time.Since(start), "left", left)
	}
}

func microNow() *metav1.MicroTime {
	return &metav1.MicroTime{Time: time.Now().Truncate(time.Microsecond)}
}

func (c *courier) note(f func(*v1alpha1.Connections)) {
	c.mu.Lock()
	f(&c.told)
	c.mu.Unlock()
	c.w.poke()
}

// pass tells the target what it has not been told; left is how many connections it cannot be told. What is told is told to its end, unless ctx ends; what is read may be given up with reading.
func (c *courier) pass(ctx, reading context.Context, timeout time.Duration) (left int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reading, leave := context.WithTimeout(reading, timeout)
	defer leave()
	zones, err := c.h.zones(ctx)
	if err != nil {
		return 0, err
	}
	mine, err := c.h.addresses(c.w.launcher)
	if err != nil {
		return 0, err
	}
	if err := c.connect(ctx); err != nil {
		return 0, err
	}
	names := named(c.line.pm, zones)
	if len(names) == 0 || shared(names[0]) {
		return 0, errNoZone
	}
	q := conntrack.Query{Limit: c.h.limit, Keep: of(mine)}
	for _, name := range names {
		q.Zones = append(q.Zones, zones[name])
	}
	start := time.Now()
	d, err := c.table.Dump(reading, q)
	if err != nil {
		c.shut()
		return 0, err
	}
	read := time.Now()
	for _, n := range d.Left {
		left += n
	}
	n, err := c.tellAll(ctx, names, func(name string) []conntrack.Entry { return d.Entries[zones[name]] })
	if err != nil {
		return 0, err
	}
	left += n
	c.w.log.Debug("looked for the VM's connections", "read_in", read.Sub(start), "told_in", time.Since(read))
	return left, nil
}

// tellAll tells what zones have. One of a port that the target refuses may be one that OVN has not given out there yet, without which nothing has begun; or it is of a NIC that only the source has, and which goes with the
// move: left is what it has, if the target has taken another port's, and refuses this one for a while or to the end. The others are told either way.
func (c *courier) tellAll(ctx context.Context, names []string, have func(name string) []conntrack.Entry) (left int, err error) {
	var refused error
	ports := 0
	for _, name := range names {
		switch err := c.tell(ctx, name, have(name)); {
		case errors.Is(err, peer.ErrRefused) && shared(name): // it need not be on the target yet
		case errors.Is(err, peer.ErrRefused) && !c.taken[name]:
			left += len(have(name))
			refused = errors.Join(refused, err)
		case err != nil:
			return 0, err
		}
		if c.taken[name] && !shared(name) {
			ports++
		}
	}
	switch {
	case refused == nil:
		c.refusing = time.Time{}
		return left, nil
	case c.refusing.IsZero():
		c.refusing = time.Now()
	}
	if ports == 0 || time.Since(c.refusing) < refusedFor && !c.ending() {
		return 0, refused
	}
	c.w.log.Debug("the target does not take the connections of some ports", "left", left, "error", refused)
	return left, nil
}

// ending says whether nothing changes on the source any more.
func (c *courier) ending() bool {
	select {
	case <-c.last:
		return true
	default:
		return false
	}
}

// connect opens the table and a connection of its own: what is said of the VM's stop must not wait behind connections.
func (c *courier) connect(ctx context.Context) (err error) {
	if c.table == nil {
		if c.table, err = c.h.open(); err != nil {
			c.table = nil
			return err
		}
	}
	if c.conn == nil {
		if c.conn, err = c.line.dial(ctx); err != nil {
			c.conn = nil
			return err
		}
		c.passes, c.taken, c.refusing, c.leave = map[string]*conntrack.Passes{}, map[string]bool{}, time.Time{}, c.keep(c.conn)
	}
	return nil
}

// tell sends those of a zone's entries that the target was not told. What is refused is told anew the next time.
func (c *courier) tell(ctx context.Context, zone string, have []conntrack.Entry) error {
	if c.passes[zone] == nil {
		c.passes[zone] = &conntrack.Passes{}
	}
	messages, err := conntrack.Encode(c.passes[zone].Due(have, time.Now()))
	if err != nil {
		c.close()
		return err
	}
	for _, m := range messages {
		reply, err := c.conn.Send(ctx, peer.Message{Kind: peer.Connections, Zone: zone, Entries: m})
		if err != nil || reply.Again {
			delete(c.passes, zone)
		}
		switch {
		case errors.Is(err, peer.ErrRefused):
			return err
		case err != nil:
			c.close()
			return err
		}
		c.taken[zone] = true
	}
	return nil
}

// close gives up what was open. The next pass tells everything anew.
func (c *courier) close() {
	if c.conn != nil {
		c.leave()
		_ = c.conn.Close()
		c.conn = nil
	}
	c.shut()
}

// shut gives up the table.
func (c *courier) shut() {
	if c.table != nil {
		_ = c.table.Close()
		c.table = nil
	}
}
