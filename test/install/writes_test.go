package install

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/test/lab"
)

const (
	// writeInterval is the pause between two writes: what is measured is as coarse as that. Each makes northd look at its whole input.
	writeInterval = 200 * time.Millisecond
	writeTimeout  = time.Second
)

// writtenKey is of external_ids of NB_Global.
const writtenKey = "lab.godwit.dev/written"

// writing writes to NB again and again, through members that stay; they pass it on to the leader, whoever that is.
type writing struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	// written are the moments at which writes were acknowledged.
	written []time.Time
}

// startWriting writes through the databases of all nodes but one, in turn.
func startWriting(t *testing.T, l *lab.Lab, not string) *writing {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &writing{cancel: cancel}
	var sockets []string
	for _, node := range l.NodeNames() {
		if node != not {
			sockets = append(sockets, strings.TrimPrefix(l.Database(node, "nb"), "unix:"))
		}
	}
	w.done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if write(ctx, sockets[i%len(sockets)], i) == nil {
				w.written = append(w.written, time.Now())
			}
			select {
			case <-ctx.Done():
			case <-time.After(writeInterval):
			}
		}
	})
	return w
}

func write(ctx context.Context, socket string, i int) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	change := map[string]any{"op": "mutate", "table": "NB_Global", "where": []any{}, "mutations": []any{
		[]any{"external_ids", "delete", []any{"set", []any{writtenKey}}}, []any{"external_ids", "insert", []any{"map", []any{[]any{writtenKey, fmt.Sprint(i)}}}},
	}}
	var results []struct{ Error, Details string }
	if err := ovs.Call(ctx, socket, "transact", []any{"OVN_Northbound", change}, &results); err != nil {
		return err
	}
	for _, r := range results {
		if r.Error != "" {
			return fmt.Errorf("%s: %s", r.Error, r.Details)
		}
	}
	return nil
}

// stop ends it, and returns the longest time between two writes that ended after a moment.
func (w *writing) stop(t *testing.T, from time.Time) (longest time.Duration) {
	t.Helper()
	w.cancel()
	w.done.Wait()
	after := 0
	for i := 1; i < len(w.written); i++ {
		if w.written[i].After(from) {
			after++
			longest = max(longest, w.written[i].Sub(w.written[i-1]))
		}
	}
	if after == 0 {
		t.Fatalf("of %d writes none came through after the leader was killed", len(w.written))
	}
	return longest
}
