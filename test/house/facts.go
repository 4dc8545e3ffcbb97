package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Imports are the product's packages, each with those of the product that it imports.
func (t *Tree) Imports() map[string][]string {
	out := map[string][]string{}
	for _, f := range t.Files {
		if f.Test || !strings.HasPrefix(f.Path, "pkg/") {
			continue
		}
		all := out[f.Package()]
		for _, i := range f.Syntax.Imports {
			if own, ok := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), Module); ok && !slices.Contains(all, own) {
				all = append(all, own)
			}
		}
		slices.Sort(all)
		out[f.Package()] = all
	}
	return out
}

// tiersFile holds the packages in tiers to it; Tiers reads them there.
const tiersFile = "pkg/tiers_test.go"

// Tiers are the product's packages by tier.
func (t *Tree) Tiers() (map[string]int, error) {
	for _, f := range t.Files {
		if f.Path != tiersFile {
			continue
		}
		out := map[string]int{}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || v.Names[0].Name != "tiers" || len(v.Values) != 1 {
				return true
			}
			if lit, ok := v.Values[0].(*ast.CompositeLit); ok {
				for _, e := range lit.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok {
						if tier, err := strconv.Atoi(name(kv.Value)); err == nil {
							out[name(kv.Key)] = tier
						}
					}
				}
			}
			return false
		})
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, fmt.Errorf("%s has no map named tiers", tiersFile)
}

// keysFile has the keys of OVN's rows.
const keysFile = "pkg/ident/keys.go"

// keys are those of keysFile by the name of their constant.
func (t *Tree) keys() map[string]string {
	out := map[string]string{}
	for _, f := range t.Files {
		if f.Path != keysFile {
			continue
		}
		each(f.Syntax, func(n *ast.Ident, value ast.Expr) {
			if strings.Contains(n.Name, "Key") || strings.HasPrefix(n.Name, "Option") || strings.HasPrefix(n.Name, "Binding") {
				out["ident."+n.Name] = name(value)
			}
		})
	}
	return out
}

// Writers are, for each key of an OVN row, the files of the product in which it stands as the key of a map that is made, or of an element that is set.
func (t *Tree) Writers() map[string][]string {
	keys, out := t.keys(), map[string][]string{}
	aliases := map[string]string{} // constants of a package that are one of the keys
	for _, f := range t.Files {
		if f.pkg() {
			each(f.Syntax, func(n *ast.Ident, value ast.Expr) {
				if text, ok := keys[name(value)]; ok {
					aliases[f.Package()+" "+n.Name] = text
				}
			})
		}
	}
	for _, f := range t.Files {
		if !f.pkg() {
			continue
		}
		wrote := func(key ast.Expr) {
			text, ok := keys[name(key)]
			if !ok {
				text, ok = aliases[f.Package()+" "+name(key)]
			}
			if ok && !slices.Contains(out[text], f.Path) {
				out[text] = append(out[text], f.Path)
			}
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				wrote(n.Key)
			case *ast.AssignStmt:
				for _, l := range n.Lhs {
					if i, ok := l.(*ast.IndexExpr); ok {
						wrote(i.Index)
					}
				}
			}
			return true
		})
	}
	return out
}

// WrittenOut are the keys of OVN's rows that stand in the product as text, beside the constant.
func (t *Tree) WrittenOut() []Finding {
	known := map[string]bool{}
	for _, text := range t.keys() {
		known[text] = true
	}
	var out []Finding
	for _, f := range t.Files {
		if !f.pkg() || f.Path == keysFile {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && known[name(lit)] && !notKeys[f.Path+" "+name(lit)] {
				out = append(out, Finding{Where: t.at(lit.Pos()), What: name(lit)})
			}
			return true
		})
	}
	return out
}

// notKeys are texts that are a key of a row, but mean something else where they stand.
var notKeys = map[string]bool{
	"pkg/api/v1alpha1/annotations.go godwit.dev/subnet": true, // the finalizer
}

var waitName = regexp.MustCompile(`(?i)(timeout|deadline|interval|delay|grace|period|retry|backoff|margin|requeue|window|duration)`)

// Waits are the product's constants and settings that say how long something is waited for, with their values as they are written.
func (t *Tree) Waits() []Finding {
	var out []Finding
	for _, f := range t.Files {
		if !f.pkg() {
			continue
		}
		each(f.Syntax, func(n *ast.Ident, value ast.Expr) {
			if v := name(value); waitName.MatchString(n.Name) && strings.Contains(v, "time.") {
				out = append(out, Finding{Where: t.at(n.Pos()), What: n.Name + " = " + v})
			}
		})
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			if kv, ok := n.(*ast.KeyValueExpr); ok && waitName.MatchString(name(kv.Key)) {
				if v := name(kv.Value); strings.Contains(v, "time.") {
					out = append(out, Finding{Where: t.at(kv.Pos()), What: name(kv.Key) + " = " + v})
				}
			}
			return true
		})
	}
	return out
}

// BareDeadlines are deadlines of the product that are written where they are used: nobody finds them, and nobody says why.
func (t *Tree) BareDeadlines() []Finding {
	var out []Finding
	for _, f := range t.Files {
		if !f.pkg() {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || name(call.Fun) != "context.WithTimeout" || len(call.Args) != 2 {
				return true
			}
			if v := name(call.Args[1]); strings.Contains(v, "time.") {
				out = append(out, Finding{Where: t.at(call.Pos()), What: v})
			}
			return true
		})
	}
	return out
}

var (
	metricName  = regexp.MustCompile(`\bgodwit_[a-z0-9_]+\b`)
	metricParts = regexp.MustCompile(`_(sum|count|bucket)$`)
)

// Metrics are the names of metrics that the product registers.
func (t *Tree) Metrics() []string {
	found := map[string]bool{}
	for _, f := range t.Files {
		if !f.pkg() {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit: // prometheus.CounterOpts and the like
				for _, e := range n.Elts {
					kv, ok := e.(*ast.KeyValueExpr)
					if ok && strings.HasPrefix(name(n.Type), "prometheus.") && name(kv.Key) == "Name" {
						found[name(kv.Value)] = true
					}
				}
			case *ast.CallExpr:
				if name(n.Fun) == "prometheus.NewDesc" && len(n.Args) > 0 {
					found[name(n.Args[0])] = true
				}
			}
			return true
		})
	}
	return slices.Sorted(maps.Keys(found))
}

// policyRow are the names of rows that pkg/policy writes (its doc.go): in a match of OVN's they need the form of a word, which metrics have too.
var policyRow = regexp.MustCompile(`^godwit_(np_(ingress|egress|log)(_handover)?|[bdnps]_.*|anchor_.*|hosts_.*|elsewhere_.*)$`)

// metricsNamedIn are those that a text names, without what Prometheus adds for histograms.
func metricsNamedIn(text string) []string {
	var out []string
	for _, m := range metricName.FindAllString(text, -1) {
		if policyRow.MatchString(m) {
			continue
		}
		out = append(out, metricParts.ReplaceAllString(m, ""))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var majorVersion = regexp.MustCompile(`/v[0-9]+$`)

// Dependencies are the modules that go.mod requires directly.
func Dependencies(gomod string) []string {
	var out []string
	for line := range strings.Lines(gomod) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		fields := strings.Fields(line)
		if len(fields) == 2 && strings.Contains(fields[0], ".") && strings.HasPrefix(fields[1], "v") {
			out = append(out, fields[0])
		}
	}
	return out
}

// Explained are the modules that the table of direct dependencies has a line for. A cell may name several: "github.com/vishvananda/netlink, netns".
func Explained(table string) []string {
	var out []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 || !strings.Contains(cells[1], ".") {
			continue
		}
		first := ""
		for _, m := range strings.FieldsFunc(cells[1], func(r rune) bool { return r == ',' || r == ';' }) {
			m = strings.TrimSpace(m)
			if first == "" {
				first = m
			} else if !strings.Contains(m, ".") {
				m = path.Dir(majorVersion.ReplaceAllString(first, "")) + "/" + m
			}
			out = append(out, m)
		}
	}
	return out
}

// each calls see with the constants that a file declares at its top, and their values.
func each(f *ast.File, see func(*ast.Ident, ast.Expr)) {
	values := map[string]ast.Expr{}
	var names []*ast.Ident
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v, ok := s.(*ast.ValueSpec)
			if !ok || len(v.Values) != len(v.Names) {
				continue
			}
			for i, n := range v.Names {
				values[n.Name] = v.Values[i]
				names = append(names, n)
			}
		}
	}
	for _, n := range names {
		value := values[n.Name]
		if same, ok := value.(*ast.Ident); ok && values[same.Name] != nil {
			value = values[same.Name] // one constant that is another
		}
		see(n, value)
	}
}
