package main

import (
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/migration"
)

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

func TestNotedSince(t *testing.T) {
	l := &ledger{
		writes: []write{{at: at(1), requested: "node1"}, {at: at(5), requested: "node1,node2", strategy: "rarp"}, {at: at(9), requested: "node2"}},
		bounds: []bound{{at: at(2), activated: "node2"}, {at: at(6)}, {at: at(7), activated: "node3,node2"}},
	}
	n, err := l.since(at(5))
	if err != nil {
		t.Fatal(err)
	}
	if len(n.writes) != 2 || len(n.bounds) != 2 {
		t.Fatalf("noted since 5 ms: %+v: want two changes of each row", n)
	}
	if paired, strategy := n.paired(); !paired.Equal(at(5)) || strategy != "rarp" {
		t.Errorf("paired at %s with %q: want 5 ms, rarp", paired, strategy)
	}
	if got := n.activated("node2"); !got.Equal(at(7)) {
		t.Errorf("activated at %s: want 7 ms", got)
	}
	if got := n.activated("node1"); !got.IsZero() {
		t.Errorf("node1 was activated at %s: want never", got)
	}
}

// A baseline that the controller did not obey is an error, not a figure.
func TestObeyed(t *testing.T) {
	single, rarp, clone := write{requested: "node2"}, write{at: at(1), requested: "node1,node2", strategy: "rarp"}, write{at: at(1), requested: "node1,node2"}
	for name, c := range map[string]struct {
		kind   migration.Baseline
		writes []write
		err    string
	}{
		"Godwit's own":              {"", []write{rarp, single}, ""},
		"without a strategy":        {"", []write{clone, single}, `activation-strategy="", want "rarp"`},
		"never two":                 {"", []write{single}, "never asked for two"},
		"clone":                     {migration.BaselineClone, []write{clone, single}, ""},
		"clone, but with rarp":      {migration.BaselineClone, []write{rarp, single}, `activation-strategy="rarp", want ""`},
		"flip":                      {migration.BaselineFlip, []write{single}, ""},
		"flip, but with two":        {migration.BaselineFlip, []write{rarp, single}, "want one all the time"},
		"clone, but nothing at all": {migration.BaselineClone, nil, "never asked for two"},
	} {
		t.Run(name, func(t *testing.T) {
			err := noted{writes: c.writes}.obeyed(c.kind)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("obeyed: %v: want %q", err, c.err)
			}
		})
	}
}
