package agent

import (
	"time"

	"github.com/godwit-cni/godwit/pkg/conntrack"
)

// flow is what makes an entry the same one, whatever becomes of the rest of it. The zone goes by OVN's name.
type flow struct {
	zone        string
	protocol    conntrack.Protocol
	orig, reply conntrack.Tuple
}

func flowOf(zone string, e conntrack.Entry) flow { return flow{zone, e.Protocol, e.Orig, e.Reply} }

// brought are the entries that were not there before a migration brought them, and when each ends if nothing uses it. Only these may be taken out of a zone that is not the VM's alone: what was there before
// is somebody's who talks to the VM from here.
type brought map[flow]time.Time

// bring notes what has come into a zone that ports share, and what was told of it again. Those beyond a limit are forgotten: they are left to end by themselves.
func (r *reception) bring(zone string, came, told []conntrack.Entry, limit int) {
	if r.brought == nil {
		r.brought = brought{}
	}
	now := time.Now()
	for _, e := range came {
		if len(r.brought) < limit {
			r.brought[flowOf(zone, e)] = now.Add(e.Timeout)
		}
	}
	for _, e := range told {
		f := flowOf(zone, e)
		if ends, ok := r.brought[f]; ok && now.Add(e.Timeout).After(ends) {
			r.brought[f] = now.Add(e.Timeout)
		}
	}
}

// idle says of an entry that was in a zone after some time that it was brought, and that nothing has used it since: it does not live longer than it was told to.
func (b brought) idle(zone string, e conntrack.Entry, after time.Time) bool {
	ends, ok := b[flowOf(zone, e)]
	return ok && e.Timeout <= ends.Sub(after)
}
