package house

import (
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// example breaks every rule once, and keeps each beside it.
const example = `package example

import "context"

// Long is documented.
func Long() {
	_ = 1
	_ = 2
	_ = 3
}

func Bare() {}

func many(ctx context.Context, a, b int, c string) {}

func few(a, b int) {}

func yes(sure bool) {}

type Hidden struct{}

func (Hidden) Method() {}

type inner struct{}

func (inner) Method() {}

// A group is documented as one.
const (
	One = 1
	Two = 2
)

var Loose = 3
`

func parsed(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	tree := &Tree{Root: t.TempDir(), Fset: token.NewFileSet()}
	for path, text := range files {
		if err := tree.parse(path, text); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func names(found []Finding) string {
	var out []string
	for _, f := range found {
		out = append(out, f.What)
	}
	return strings.Join(out, " ")
}

func TestShape(t *testing.T) {
	tree := parsed(t, map[string]string{"pkg/example/example.go": example})
	for name, c := range map[string]struct {
		found []Finding
		want  string
	}{
		"a file of more lines":                  {tree.LongFiles(10, File.Product), "lines"},
		"a file of as many lines":               {tree.LongFiles(strings.Count(example, "\n"), File.Product), ""},
		"functions of more lines":               {tree.LongFunctions(2, File.Product), "Long"},
		"functions of as many lines":            {tree.LongFunctions(3, File.Product), ""},
		"parameters, the context aside":         {tree.ManyParameters(2, File.Product), "many"},
		"as many parameters":                    {tree.ManyParameters(3, File.Product), ""},
		"boolean parameters":                    {tree.BooleanParameters(File.Product), "yes"},
		"undocumented":                          {tree.Undocumented(File.Product), "Bare Hidden Method Loose"},
		"none of it in files that are not kept": {tree.Undocumented(func(File) bool { return false }), ""},
	} {
		if got := names(c.found); got != c.want {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
	}
}

func TestSkips(t *testing.T) {
	tree := parsed(t, map[string]string{
		"pkg/a/a_test.go": "package a\nfunc TestA(t *testing.T) { t.Skip(\"no root\"); t.Run(\"x\", nil); t.Skipf(\"\") }\n",
		"pkg/a/a.go":      "package a\nfunc a(t T) { t.Skip() }\n",
	})
	if got := names(tree.Skips()); got != "t.Skip t.Skipf" {
		t.Errorf("found %q", got)
	}
}

func TestKeysAndWriters(t *testing.T) {
	tree := parsed(t, map[string]string{
		keysFile:            "package ident\nconst (\n\tOptionA = KeyA\n\tKeyA = \"a\"\n\tOwnerKey = \"owner\"\n\tOther = \"other\"\n)\n",
		"pkg/topology/x.go": "package topology\nvar _ = map[string]string{ident.OptionA: \"1\", ident.Other: \"2\"}\n",
		"pkg/ovs/x.go":      "package ovs\nconst mine = ident.OwnerKey\nfunc set(m map[string]string) { m[mine] = \"x\"; _ = m[ident.KeyA] }\n",
		"pkg/ovn/x.go":      "package ovn\nvar _ = []string{\"a\", \"other\"}\n",
	})
	want := map[string][]string{"a": {"pkg/topology/x.go"}, "owner": {"pkg/ovs/x.go"}}
	if diff := cmp.Diff(want, tree.Writers()); diff != "" {
		t.Errorf("writers (-want +got):\n%s", diff)
	}
	if got := names(tree.WrittenOut()); got != "a" {
		t.Errorf("written out: %q, want the one key that is", got)
	}
}

func TestWaits(t *testing.T) {
	tree := parsed(t, map[string]string{
		"pkg/a/a.go": "package a\nconst (\n\tsomeTimeout = 5 * time.Second\n\tcount = 3\n)\nvar _ = Config{IdleTimeout: time.Minute, Name: \"x\"}\nfunc f() { context.WithTimeout(ctx, 2*time.Second); context.WithTimeout(ctx, someTimeout) }\n",
	})
	if got := names(tree.Waits()); got != "someTimeout = 5 * time.Second IdleTimeout = time.Minute" {
		t.Errorf("waits: %q", got)
	}
	if got := names(tree.BareDeadlines()); got != "2 * time.Second" {
		t.Errorf("deadlines written where they are used: %q", got)
	}
}

func TestMetricNames(t *testing.T) {
	tree := parsed(t, map[string]string{
		"pkg/a/a.go": "package a\nvar _ = prometheus.CounterOpts{Name: \"godwit_a_total\"}\nvar _ = other.Opts{Name: \"godwit_b\"}\nvar _ = prometheus.NewDesc(\"godwit_c\", \"\")\n",
	})
	if diff := cmp.Diff([]string{"godwit_a_total", "godwit_c"}, tree.Metrics()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"godwit_x_seconds", "godwit_y"}, metricsNamedIn("rate(godwit_x_seconds_bucket[5m]) and `godwit_y{by=\"vm\"}`, the groups `godwit_np_ingress` and @godwit_s_4u3e")); diff != "" {
		t.Errorf("named (-want +got):\n%s", diff)
	}
}

func TestDependencies(t *testing.T) {
	mods := Dependencies("module github.com/godwit-cni/godwit\n\ngo 1.26\n\nrequire (\n\tk8s.io/api v0.37.2\n\tgithub.com/x/y/v4 v4.1.0\n\tgolang.org/x/z v1.0.0 // indirect\n)\n\nrequire k8s.io/client-go v0.37.2\n")
	if diff := cmp.Diff([]string{"k8s.io/api", "github.com/x/y/v4", "k8s.io/client-go"}, mods); diff != "" {
		t.Errorf("direct dependencies (-want +got):\n%s", diff)
	}
	explained := Explained("| module | for |\n|---|---|\n| k8s.io/api, client-go | types |\n| github.com/p/client; model, sigs.k8s.io/yaml | x |\n")
	want := []string{"k8s.io/api", "k8s.io/client-go", "github.com/p/client", "github.com/p/model", "sigs.k8s.io/yaml"}
	if diff := cmp.Diff(want, explained); diff != "" {
		t.Errorf("explained (-want +got):\n%s", diff)
	}
}

func write(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What a page names must be there, and what there is of metrics must be on a page. Reviews tell of what was.
func TestPages(t *testing.T) {
	tree := parsed(t, map[string]string{"pkg/a/a.go": "package a\nvar _ = prometheus.CounterOpts{Name: \"godwit_named\"}\nvar _ = prometheus.GaugeOpts{Name: \"godwit_unnamed\"}\n"})
	write(t, tree.Root, "docs/page.md", "`godwit_named{x}`, `godwit_gone`; `pkg/a/a.go`, and (pkg/b/gone.go)")
	write(t, tree.Root, "docs/reviews/first.md", "`godwit_was`, `pkg/c/was.go`")
	write(t, tree.Root, "pkg/a/a.go", "package a\n")
	metrics, err := tree.UndocumentedMetrics()
	if err != nil || names(metrics) != "godwit_gone does not exist godwit_unnamed is not named" {
		t.Errorf("metrics: %q, %v", names(metrics), err)
	}
	paths, err := tree.LostPaths()
	if err != nil || names(paths) != "pkg/b/gone.go" {
		t.Errorf("paths: %q, %v", names(paths), err)
	}
	if _, err := tree.Unexplained(); err == nil {
		t.Error("a checkout without go.mod was measured")
	}
}
