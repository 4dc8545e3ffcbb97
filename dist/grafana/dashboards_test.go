package grafana

import (
	"encoding/json"
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

var update = flag.Bool("update", false, "write the dashboards' files")

// TestFiles: the files are what the code makes, and what Grafana's schema allows.
func TestFiles(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	for _, d := range All() {
		built, err := d.Build()
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.MarshalIndent(built, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, '\n')
		file := d.UID + ".json"
		if *update {
			if err := os.WriteFile(file, want, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what the code makes: go test ./dist/grafana -update\n-want +got:\n%s", file, diff)
		}
		var read dashboard.Dashboard
		if err := read.UnmarshalJSONStrict(got); err != nil {
			t.Errorf("%s is no dashboard by Grafana's schema: %v", file, err)
		}
		if err := read.Validate(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestMetricsAreDocumented: whatever a panel asks for, docs/metrics.md explains.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`godwit_[a-z_]+`)
	for _, d := range All() {
		for _, p := range d.Panels {
			for _, q := range p.Queries {
				metrics := name.FindAllString(q.Expr, -1)
				if len(metrics) == 0 {
					t.Errorf("%s, %s: %s asks for no metric of Godwit", d.Title, p.Title, q.Expr)
				}
				for _, m := range metrics {
					for _, suffix := range []string{"_bucket", "_count"} {
						m = strings.TrimSuffix(m, suffix)
					}
					if !strings.Contains(string(text), "`"+m) {
						t.Errorf("%s, %s: docs/metrics.md does not tell what %s is", d.Title, p.Title, m)
					}
				}
			}
		}
	}
}
