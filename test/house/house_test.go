package house

import (
	"flag"
	"os"
	"testing"
)

var (
	root   = flag.String("root", "../..", "the checkout that is measured")
	output = flag.String("o", "", "the file that TestMeasures writes")
)

func checkout(t *testing.T) *Tree {
	t.Helper()
	tree, err := Read(*root)
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files) == 0 {
		t.Fatalf("no Go code below %s", *root)
	}
	return tree
}

// TestLimits holds what style allows no exception from.
func TestLimits(t *testing.T) {
	all, err := checkout(t).Measures()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if !m.Hard {
			continue
		}
		for _, f := range m.Found {
			t.Errorf("%s: %s", m.Name, f)
		}
	}
}

// TestMeasures prints all measures with -v, and writes them with -o.
func TestMeasures(t *testing.T) {
	if *output == "" {
		if err := checkout(t).Report(t.Output()); err != nil {
			t.Fatal(err)
		}
		return
	}
	f, err := os.Create(*output)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkout(t).Report(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
