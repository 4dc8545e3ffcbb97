package demo

import (
	"fmt"
	"time"

	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/timeline"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// connections are those that were held through all migrations.
type connections struct {
	length   time.Duration
	to, from passage.Seen
}

// all are the connections, as who opened them saw them.
func (c connections) all() []traffic.Connection {
	return append(append([]traffic.Connection(nil), c.to.Result.Connections...), c.from.Result.Connections...)
}

// held counts them. How long one made no progress is told by the peer, in either direction: the VM's clock stands still while the VM is stopped.
func (c connections) held() timeline.Connections {
	h := timeline.Held(c.to.Result, c.from.Result)
	peers := traffic.Result{Connections: append(append([]traffic.Connection(nil), c.to.Result.Connections...), c.from.Arrivals.Connections...)}
	h.Stall = timeline.Held(&peers).Stall
	return h
}

// counted is held without the stall, which may be that of another migration.
func (c connections) counted() timeline.Connections {
	h := c.held()
	h.Stall = 0
	return h
}

func (c connections) String() string {
	h := c.held()
	return fmt.Sprintf("%d TCP connections to the VM and from it were held for %s, through both migrations: %d were kept, the longest stall was %s ms.",
		h.Total, c.length.Round(time.Second), h.Kept, passage.Millis(h.Stall))
}

// throughput of the two bulk streams that the peer holds with the VM.
func (c connections) throughput() []timeline.Series {
	r := c.to.Result
	return []timeline.Series{
		timeline.Streams("to the VM", traffic.Upload, r.Start, r.Bucket, r.Connections),
		timeline.Streams("from the VM", traffic.Download, r.Start, r.Bucket, r.Connections),
	}
}
