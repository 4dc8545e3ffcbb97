package migration

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

var (
	update = flag.Bool("update", false, "write what the scenarios of testdata/*.txt decide into them; review the difference")
	traces = flag.String("traces", "testdata/traces", "directory of recordings (*.jsonl, *.jsonl.gz) for TestReplay, absolute or from the top of the repository")
)

func TestMain(m *testing.M) {
	flag.Parse()
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	defaults := map[string]string{"rapid.checks": "1000"} // few runs of 100 come as far as post-copy
	if *update {
		defaults["rewrite"] = "true" // datadriven's own name for it
	}
	for name, value := range defaults {
		if given[name] {
			continue
		}
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestScenarios runs testdata/*.txt. A scenario file tells a story: "new" starts with a VM that nobody knows yet, "step" takes lines of what happened (see
// world.do) and shows each decision until nothing changes any more: its phase, what is written, who may attach. Between decisions
// northd runs once.
func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios in testdata: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) { runScenario(t, path) })
	}
}

func runScenario(t *testing.T, path string) {
	w := newWorld()
	datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "new":
			w = newWorld()
		case "step":
		default:
			d.Fatalf(t, "unknown command %q", d.Cmd)
		}
		for line := range strings.Lines(d.Input) {
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if err := w.do(line); err != nil {
				d.Fatalf(t, "%s: %v", line, err)
			}
		}
		if d.Cmd == "new" {
			w.ovn.northd()
			return "ok"
		}
		out, err := w.settle()
		if err != nil {
			d.Fatalf(t, "%s%v", out, err)
		}
		return out
	})
}
