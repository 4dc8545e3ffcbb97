package prometheus

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/godwit-cni/godwit/test/lab/source"
)

func read(t *testing.T, path ...string) string {
	t.Helper()
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(append([]string{top}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAlerts: each fires when it should and not before, by promtool.
func TestAlerts(t *testing.T) {
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckRules(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), filepath.Join(top, "dist/prometheus/rules_test.yaml")); err != nil {
		t.Fatal(err)
	}
}

type ruleFile struct {
	Groups []struct {
		Rules []struct {
			Alert       string            `json:"alert"`
			Expr        string            `json:"expr"`
			Annotations map[string]string `json:"annotations"`
		} `json:"rules"`
	} `json:"groups"`
}

// TestAlertsAreDocumented: each has its page, is tried by rules_test.yaml, and asks for metrics that docs/metrics.md explains.
func TestAlertsAreDocumented(t *testing.T) {
	var rules ruleFile
	if err := yaml.Unmarshal([]byte(read(t, "dist/prometheus/rules.yaml")), &rules); err != nil {
		t.Fatal(err)
	}
	pages, metrics, tests := read(t, "docs/runbooks.md"), read(t, "docs/metrics.md"), read(t, "dist/prometheus/rules_test.yaml")
	name := regexp.MustCompile(`godwit_[a-z_]+`)
	count := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			count++
			if !strings.Contains(pages, "## "+r.Alert+"\n") || !strings.HasSuffix(r.Annotations["runbook_url"], "/docs/runbooks.md#"+strings.ToLower(r.Alert)) {
				t.Errorf("%s has no page in docs/runbooks.md, or does not name it", r.Alert)
			}
			if strings.Count(tests, r.Alert) < 2 {
				t.Errorf("dist/prometheus/rules_test.yaml does not try %s both ways", r.Alert)
			}
			for _, m := range name.FindAllString(r.Expr, -1) {
				if !strings.Contains(metrics, "`"+strings.TrimSuffix(m, "_bucket")) {
					t.Errorf("%s: docs/metrics.md does not tell what %s is", r.Alert, m)
				}
			}
		}
	}
	if want := strings.Count(pages, "\n## "); count == 0 || count != want {
		t.Errorf("there are %d alerts and %d pages", count, want)
	}
}

// TestOperatorHasTheSameAlerts: the Prometheus operator's file and the plain one.
func TestOperatorHasTheSameAlerts(t *testing.T) {
	var plain, wrapped map[string]any
	if err := yaml.Unmarshal([]byte(read(t, "dist/prometheus/rules.yaml")), &plain); err != nil {
		t.Fatal(err)
	}
	_, last, found := strings.Cut(read(t, "dist/prometheus/operator.yaml"), "\n---\n")
	if err := yaml.Unmarshal([]byte(last), &wrapped); err != nil || !found {
		t.Fatal("operator.yaml has no second document", err)
	}
	if diff := cmp.Diff(any(plain), wrapped["spec"]); diff != "" {
		t.Errorf("-rules.yaml +operator.yaml:\n%s", diff)
	}
}
