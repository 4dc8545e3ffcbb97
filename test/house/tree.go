// Package house measures the code against the rules that this project keeps: the length of files and functions, parameters, documentation, tiers, who writes what,
// waits, dependencies. Hard limits fail its tests; `make measures` prints the rest.
package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Module is the module's path, with which the imports of its own packages begin.
const Module = "github.com/godwit-cni/godwit/"

// roots are the directories that hold Go code.
var roots = []string{"cmd", "pkg", "test"}

// File is one Go file.
type File struct {
	// Path is relative to the checkout, with slashes.
	Path  string
	Lines int
	// Test: its name ends in _test.go. Generated: it says so.
	Test, Generated bool
	Syntax          *ast.File
}

// Package is the directory of the file.
func (f File) Package() string { return filepath.ToSlash(filepath.Dir(f.Path)) }

// Product says whether the file is part of the product or of its tools, and written by hand.
func (f File) Product() bool { return !f.Test && !f.Generated }

// pkg says whether the file is part of the product's packages, and written by hand.
func (f File) pkg() bool { return f.Product() && strings.HasPrefix(f.Path, "pkg/") }

// Tree is the code of a checkout.
type Tree struct {
	Root  string
	Fset  *token.FileSet
	Files []File
}

// Read parses all Go code below the checkout at root. Directories that are modules of their own, and testdata, are left out.
func Read(root string) (*Tree, error) {
	t := &Tree{Root: root, Fset: token.NewFileSet()}
	for _, dir := range roots {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || d.Name() == "testdata" {
					return filepath.SkipDir
				}
				return nil
			}
			if !strings.HasSuffix(path, ".go") {
				return nil
			}
			return t.add(path)
		})
		if err != nil {
			return nil, fmt.Errorf("read the code below %s: %w", filepath.Join(root, dir), err)
		}
	}
	return t, nil
}

func (t *Tree) add(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(t.Root, path)
	if err != nil {
		return err
	}
	return t.parse(filepath.ToSlash(rel), string(text))
}

// parse adds a file; path is relative to the checkout.
func (t *Tree) parse(path, text string) error {
	syntax, err := parser.ParseFile(t.Fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	t.Files = append(t.Files, File{
		Path: path, Lines: strings.Count(text, "\n"), Test: strings.HasSuffix(path, "_test.go"),
		Generated: ast.IsGenerated(syntax) || strings.HasPrefix(text, "// Code generated"), Syntax: syntax,
	})
	return nil
}

// at is where something is, for people.
func (t *Tree) at(pos token.Pos) string {
	p := t.Fset.Position(pos)
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// line of a position in its file.
func (t *Tree) line(pos token.Pos) int { return t.Fset.Position(pos).Line }

// text reads a file of the checkout.
func (t *Tree) text(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(t.Root, filepath.FromSlash(path)))
	if err != nil {
		return "", fmt.Errorf("read %s of the checkout: %w", path, err)
	}
	return string(b), nil
}
