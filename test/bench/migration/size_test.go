package main

import (
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/migration"
)

func TestSize(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		env  string
		want size
		err  string
	}{
		"nothing said":      {nil, "", size{count: 50, baselines: 10}, ""},
		"COUNT":             {nil, "10", size{count: 10, baselines: 2}, ""},
		"few":               {nil, "2", size{count: 2, baselines: 2}, ""},
		"flags go first":    {[]string{"-count", "4", "-baselines", "6"}, "10", size{count: 4, baselines: 6}, ""},
		"an odd number":     {nil, "7", size{}, "count 7"},
		"none":              {nil, "0", size{}, "count 0"},
		"too many":          {nil, "102", size{}, "count 102"},
		"a stop":            {[]string{"-stop", "500ms"}, "2", size{count: 2, baselines: 2, stop: 500 * time.Millisecond}, ""},
		"a stop too long":   {[]string{"-stop", "10s"}, "2", size{}, "stop 10s"},
		"no number":         {nil, "ten", size{}, "COUNT=ten"},
		"an odd baseline":   {[]string{"-baselines", "3"}, "", size{}, "baselines 3"},
		"an unknown option": {[]string{"-pairs", "3"}, "", size{}, "-pairs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COUNT", c.env)
			got, err := options(c.args)
			switch {
			case c.err == "" && (err != nil || got != c.want):
				t.Errorf("options: %+v, %v: want %+v", got, err, c.want)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("options: %+v, %v: want an error with %q", got, err, c.err)
			}
		})
	}
}

// The baselines are spread over the whole run, and Godwit's own comes first: it is the first migration that the issue asks for apart.
func TestPairs(t *testing.T) {
	got := size{count: 50, baselines: 10}.pairs()
	n := map[migration.Baseline]int{}
	last := map[migration.Baseline]int{}
	for i, kind := range got {
		if n[kind] > 0 && i-last[kind] > 13 {
			t.Errorf("%s: pairs %d and %d are %d apart: want them spread evenly: %v", title(kind), last[kind], i, i-last[kind], got)
		}
		n[kind]++
		last[kind] = i
	}
	if len(got) != 60 || n[""] != 25 || n[silent] != 25 || n[migration.BaselineFlip] != 5 || n[migration.BaselineClone] != 5 {
		t.Errorf("%d pairs, %v: want 25 of Godwit's, 5 of each baseline", len(got), n)
	}
	if got[0] != "" {
		t.Errorf("the first is %s: want Godwit's own", title(got[0]))
	}
}
