package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// Finding is one place that a measure counts.
type Finding struct {
	// Where is the file and line.
	Where string
	// What is the name of it.
	What string
	// Size is how much, in the measure's unit; 0 where there is none.
	Size int
}

// String is for people.
func (f Finding) String() string {
	if f.Size == 0 {
		return f.Where + " " + f.What
	}
	return fmt.Sprintf("%s %s: %d", f.Where, f.What, f.Size)
}

// LongFiles are those with more than limit lines of which keep says so.
func (t *Tree) LongFiles(limit int, keep func(File) bool) []Finding {
	var out []Finding
	for _, f := range t.Files {
		if keep(f) && f.Lines > limit {
			out = append(out, Finding{Where: f.Path, What: "lines", Size: f.Lines})
		}
	}
	return out
}

// LongFunctions are those whose bodies have more than limit lines.
func (t *Tree) LongFunctions(limit int, keep func(File) bool) []Finding {
	var out []Finding
	t.functions(keep, func(_ File, fn *ast.FuncDecl) {
		if fn.Body == nil {
			return
		}
		if n := t.line(fn.Body.Rbrace) - t.line(fn.Body.Lbrace) - 1; n > limit {
			out = append(out, Finding{Where: t.at(fn.Pos()), What: fn.Name.Name, Size: n})
		}
	})
	return out
}

// ManyParameters are functions with more than limit parameters beside a context, or a test, that comes first.
func (t *Tree) ManyParameters(limit int, keep func(File) bool) []Finding {
	var out []Finding
	t.functions(keep, func(_ File, fn *ast.FuncDecl) {
		n := 0
		for i, p := range fn.Type.Params.List {
			if i == 0 && slices.Contains([]string{"context.Context", "*testing.T", "testing.TB"}, name(p.Type)) {
				continue
			}
			n += max(1, len(p.Names))
		}
		if n > limit {
			out = append(out, Finding{Where: t.at(fn.Pos()), What: fn.Name.Name, Size: n})
		}
	})
	return out
}

// BooleanParameters are parameters of type bool: at the place of the call nobody sees what true means.
func (t *Tree) BooleanParameters(keep func(File) bool) []Finding {
	var out []Finding
	t.functions(keep, func(_ File, fn *ast.FuncDecl) {
		for _, p := range fn.Type.Params.List {
			if name(p.Type) == "bool" {
				out = append(out, Finding{Where: t.at(p.Pos()), What: fn.Name.Name})
			}
		}
	})
	return out
}

// Undocumented are exported functions, types, constants and variables, and methods of exported types, without a comment. A comment before a group documents all of it.
func (t *Tree) Undocumented(keep func(File) bool) []Finding {
	var out []Finding
	bare := func(name *ast.Ident, docs ...*ast.CommentGroup) {
		for _, d := range docs {
			if d != nil {
				return
			}
		}
		if name.IsExported() {
			out = append(out, Finding{Where: t.at(name.Pos()), What: name.Name})
		}
	}
	for _, f := range t.Files {
		if !keep(f) {
			continue
		}
		for _, d := range f.Syntax.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil || ast.IsExported(strings.TrimPrefix(name(d.Recv.List[0].Type), "*")) {
					bare(d.Name, d.Doc)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						bare(s.Name, s.Doc, s.Comment, d.Doc)
					case *ast.ValueSpec:
						for _, n := range s.Names {
							bare(n, s.Doc, s.Comment, d.Doc)
						}
					}
				}
			}
		}
	}
	return out
}

// Skips are tests that do not say whether what they test works.
func (t *Tree) Skips() []Finding {
	var out []Finding
	for _, f := range t.Files {
		if !f.Test {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if s, ok := call.Fun.(*ast.SelectorExpr); ok && (s.Sel.Name == "Skip" || s.Sel.Name == "Skipf" || s.Sel.Name == "SkipNow") {
				out = append(out, Finding{Where: t.at(call.Pos()), What: name(s)})
			}
			return true
		})
	}
	return out
}

func (t *Tree) functions(keep func(File) bool, see func(File, *ast.FuncDecl)) {
	for _, f := range t.Files {
		if !keep(f) {
			continue
		}
		for _, d := range f.Syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				see(f, fn)
			}
		}
	}
}

// name is a type or a selector as it is written, without type parameters; empty for anything else.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return name(e.X) + "." + e.Sel.Name
	case *ast.StarExpr:
		return "*" + name(e.X)
	case *ast.IndexExpr:
		return name(e.X)
	case *ast.ParenExpr:
		return name(e.X)
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			return strings.Trim(e.Value, "\"`")
		}
		return e.Value
	case *ast.BinaryExpr:
		if x, y := name(e.X), name(e.Y); x != "" && y != "" {
			return x + " " + e.Op.String() + " " + y
		}
	}
	return ""
}
