package controller

// Which VMs take their connections along, and until when.
// In:   what is decided of a VM's port (requested-chassis), and when it was last given to one chassis (external_ids godwit.dev/moved), which vm.go writes with it.
// Out:  policies (policy.Index.StartMoving, StopMoving).
// All of it is in the row: a controller that was away when the grace ended finds that out, and one that comes in between knows how long there is left.

import (
	"time"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// handover is how long after a migration connections still move along; zero if they never do.
type handover struct{ grace time.Duration }

func newHandover(c Config) handover {
	if !c.HandoverRules {
		return handover{}
	}
	return handover{grace: c.HandoverGrace}
}

// journey is whether a port takes its connections along. left is for how much longer, zero as long as no end is known.
type journey struct {
	moving bool
	left   time.Duration
}

// journey follows from what a port asks for, or is about to ask for, and from its key KeyMoved. A time that is no time, or in the future by another controller's clock,
// never makes it longer than the grace.
func (h handover) journey(s migration.PortState, moved string, now time.Time) journey {
	if h.grace == 0 {
		return journey{}
	}
	if s.Pair() {
		return journey{moving: true}
	}
	at, err := time.Parse(time.RFC3339Nano, moved)
	if err != nil {
		return journey{} // it never moved
	}
	if left := min(at.Add(h.grace).Sub(now), h.grace); left > 0 {
		return journey{moving: true, left: left}
	}
	return journey{}
}

// moved is what KeyMoved must be. A VM that stops, or another of its name, has no connections to take along.
func (o observed) moved(p migration.PortDecision) string {
	row := o.rows[p.Network]
	switch {
	case p.Want.Requested == string(ident.NoChassis), o.vmi != nil && row.Options[ident.OptionIfaceIDVer] != string(o.vmi.UID):
		return ""
	case p.Observed.Pair() && !p.Want.Pair():
		return o.env.Now.UTC().Format(time.RFC3339Nano)
	}
	return row.ExternalIDs[ident.KeyMoved]
}

// setJourney tells whether a port takes its connections along, and says whether that was not known.
func (p *policies) setJourney(port ident.PortName, j journey) (news bool) {
	p.tell(func(x *policy.Index) {
		if news = x.Moving(port) != j.moving; !news {
			return
		}
		if j.moving {
			x.StartMoving(port)
		} else {
			x.StopMoving(port)
		}
	})
	if news {
		p.log.Info("connections of a VM", "port", port, "handover", j.moving)
	}
	return news
}

// restoreJourney tells what the row of a VM's port says.
func (p *policies) restoreJourney(row *nbdb.LogicalSwitchPort) {
	p.setJourney(ident.PortName(row.Name), p.handover.journey(migration.PortState{Requested: row.Options[ident.OptionRequestedChassis]}, row.ExternalIDs[ident.KeyMoved], p.now()))
}

// sooner is the shorter of two times to wait, of which zero is for ever.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
