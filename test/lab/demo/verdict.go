package demo

import (
	"fmt"

	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// verdict is what a demo comes to.
type verdict struct {
	before, after passage.State
	connections   []traffic.Connection
	passages      []*passage.Passage
}

// problems are all that is not as it must be.
func (v verdict) problems() []error {
	all := v.before.Changes(v.after)
	if want := 2 * passage.PerDirection; len(v.connections) != want {
		all = append(all, fmt.Errorf("%d TCP connections were held: want %d", len(v.connections), want))
	}
	for _, c := range v.connections {
		switch {
		case c.Broken != "":
			all = append(all, fmt.Errorf("TCP connection %d (%s, to %s) broke after %s ms: %s: %s", c.Number, c.Kind, c.Peer, passage.Millis(c.Ended), c.Broken, c.Error))
		case !c.Opened:
			all = append(all, fmt.Errorf("TCP connection %d (%s, to %s) was never opened", c.Number, c.Kind, c.Peer))
		}
	}
	for _, p := range v.passages {
		for _, d := range p.Directions() {
			if len(d.Arrivals) == 0 || d.Open {
				all = append(all, fmt.Errorf("migration from %s to %s: of the probes %s nothing arrived after it", p.Source, p.Target, d.Name))
			}
		}
	}
	return all
}
