package house

import (
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Unexplained are the direct dependencies that docs/dependencies.md says nothing of.
func (t *Tree) Unexplained() ([]Finding, error) {
	gomod, err := t.text("go.mod")
	if err != nil {
		return nil, err
	}
	table, err := t.text(dependenciesFile)
	if err != nil {
		return nil, err
	}
	var out []Finding
	explained := Explained(table)
	for _, m := range Dependencies(gomod) {
		if !slices.Contains(explained, m) {
			out = append(out, Finding{Where: "go.mod", What: m})
		}
	}
	return out, nil
}

// UndocumentedMetrics are the metrics that no page of docs/ names, and those that a page names and that the product does not register.
func (t *Tree) UndocumentedMetrics() ([]Finding, error) {
	pages, err := t.pages()
	if err != nil {
		return nil, err
	}
	registered, named := t.Metrics(), map[string]bool{}
	var out []Finding
	for page, text := range pages {
		for _, m := range metricsNamedIn(text) {
			named[m] = true
			if !slices.Contains(registered, m) {
				out = append(out, Finding{Where: page, What: m + " does not exist"})
			}
		}
	}
	for _, m := range registered {
		if !named[m] {
			out = append(out, Finding{Where: "docs", What: m + " is not named"})
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Where+a.What, b.Where+b.What) })
	return out, nil
}

// namedPath is a file or directory of the checkout in a page.
var namedPath = regexp.MustCompile("(?:^|[`( ])((?:cmd|pkg|test|yamls|dist)/[A-Za-z0-9_./-]*[A-Za-z0-9_])")

// LostPaths are the files that a page of docs/ names and that are not there.
func (t *Tree) LostPaths() ([]Finding, error) {
	pages, err := t.pages()
	if err != nil {
		return nil, err
	}
	var out []Finding
	for page, text := range pages {
		for _, m := range namedPath.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(t.Root, filepath.FromSlash(m[1]))); err != nil {
				out = append(out, Finding{Where: page, What: m[1]})
			}
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Where+a.What, b.Where+b.What) })
	return out, nil
}

// pages are the texts of docs/ by path, without the reviews: they tell of what was.
func (t *Tree) pages() (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(filepath.Join(t.Root, "docs"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "reviews" {
			return filepath.SkipDir
		}
		if d.IsDir() || path.Ext(p) != ".md" {
			return nil
		}
		rel, err := filepath.Rel(t.Root, p)
		if err != nil {
			return err
		}
		out[filepath.ToSlash(rel)], err = t.text(filepath.ToSlash(rel))
		return err
	})
	return out, err
}

// Unused are exported functions and variables of the product's packages that no file outside of the package names. It goes by the packages' names, and sees
// neither methods, types nor constants.
func (t *Tree) Unused() []Finding {
	used := map[string]bool{} // by package and name
	for _, f := range t.Files {
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok {
					used[x.Name+"."+s.Sel.Name] = true
				}
			}
			return true
		})
	}
	var out []Finding
	for _, f := range t.Files {
		if !f.pkg() {
			continue
		}
		for _, n := range declared(f.Syntax) {
			if n.IsExported() && !used[f.Syntax.Name.Name+"."+n.Name] {
				out = append(out, Finding{Where: t.at(n.Pos()), What: n.Name})
			}
		}
	}
	return out
}

// declared are the functions and variables that a file declares.
func declared(f *ast.File) []*ast.Ident {
	var out []*ast.Ident
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				out = append(out, d.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if v, ok := s.(*ast.ValueSpec); ok && d.Tok == token.VAR {
					out = append(out, v.Names...)
				}
			}
		}
	}
	return out
}
