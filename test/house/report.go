package house

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Limits of the style guide. The hard ones fail.
const (
	softLines, hardLines       = 300, 500
	softFunction, hardFunction = 60, 100
	hardParameters             = 5
	dependenciesFile           = "docs/dependencies.md"
)

// Measure is one line of the table: what is counted, and what was found.
type Measure struct {
	Name string
	// Hard: nothing may be found.
	Hard  bool
	Found []Finding
}

// Measures are all that are counted, in the order of the table.
func (t *Tree) Measures() ([]Measure, error) {
	unexplained, err := t.Unexplained()
	if err != nil {
		return nil, err
	}
	undocumented, err := t.UndocumentedMetrics()
	if err != nil {
		return nil, err
	}
	paths, err := t.LostPaths()
	if err != nil {
		return nil, err
	}
	test := func(f File) bool { return f.Test }
	return []Measure{
		{fmt.Sprintf("files over %d lines", softLines), false, t.LongFiles(softLines, File.Product)},
		{fmt.Sprintf("files over %d lines", hardLines), true, t.LongFiles(hardLines, File.Product)},
		{fmt.Sprintf("test files over %d lines", hardLines), false, t.LongFiles(hardLines, test)},
		{fmt.Sprintf("functions over %d lines", softFunction), false, t.LongFunctions(softFunction, File.Product)},
		{fmt.Sprintf("functions over %d lines", hardFunction), true, t.LongFunctions(hardFunction, File.Product)},
		{fmt.Sprintf("test functions over %d lines", softFunction), false, t.LongFunctions(softFunction, test)},
		{fmt.Sprintf("functions with over %d parameters after ctx", hardParameters), true, t.ManyParameters(hardParameters, File.Product)},
		{fmt.Sprintf("test functions with over %d parameters after t", hardParameters), false, t.ManyParameters(hardParameters, test)},
		{"boolean parameters", true, t.BooleanParameters(File.Product)},
		{"exported names without a comment", true, t.Undocumented(File.Product)},
		{"exported functions and variables of pkg that no other package uses", false, t.Unused()},
		{"keys of OVN's rows written out beside their constant", true, t.WrittenOut()},
		{"deadlines written where they are used", true, t.BareDeadlines()},
		{"tests that may skip", true, t.Skips()},
		{"direct dependencies without a line in " + dependenciesFile, true, unexplained},
		{"metrics that docs/ does not name, or that do not exist", true, undocumented},
		{"files that docs/ names and that do not exist", true, paths},
	}, nil
}

// Report writes all measures, what was found, and the tables of what follows from the code: packages, writers, waits.
func (t *Tree) Report(w io.Writer) error {
	all, err := t.Measures()
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("# Measures\n\n`make measures` writes this page from the code. [contributing.md](contributing.md) has what it was before the first review.\n\n| measure | limit | found |\n|---|---|---|\n")
	for _, m := range all {
		fmt.Fprintf(&b, "| %s | %s | %d |\n", m.Name, map[bool]string{true: "none", false: ""}[m.Hard], len(m.Found))
	}
	for _, m := range all {
		if len(m.Found) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n\n", strings.ToUpper(m.Name[:1])+m.Name[1:])
		for _, f := range m.Found {
			f.Where, _, _ = strings.Cut(f.Where, ":") // a line would be another tomorrow
			fmt.Fprintf(&b, "- `%s`\n", f)
		}
	}
	if err := t.packages(&b); err != nil {
		return err
	}
	t.writers(&b)
	t.waits(&b)
	_, err = io.WriteString(w, b.String())
	return err
}

func (t *Tree) packages(b *strings.Builder) error {
	tiers, err := t.Tiers()
	if err != nil {
		return err
	}
	imports := t.Imports()
	b.WriteString("\n## Packages by tier\n\n| tier | package | imports of our own |\n|---|---|---|\n")
	for tier := range 3 {
		for _, p := range slices.Sorted(maps.Keys(imports)) {
			if at, ok := tiers[p]; ok && at == tier {
				fmt.Fprintf(b, "| %d | %s | %s |\n", tier, p, strings.ReplaceAll(strings.Join(imports[p], " "), "pkg/", ""))
			}
		}
	}
	return nil
}

func (t *Tree) writers(b *strings.Builder) {
	writers := t.Writers()
	b.WriteString("\n## Keys of OVN's rows, by the files that set them\n\n| key | files |\n|---|---|\n")
	for _, key := range slices.Sorted(maps.Keys(writers)) {
		fmt.Fprintf(b, "| `%s` | %s |\n", key, strings.ReplaceAll(strings.Join(writers[key], " "), "pkg/", ""))
	}
}

func (t *Tree) waits(b *strings.Builder) {
	b.WriteString("\n## Waits and deadlines\n\n| where | what |\n|---|---|\n")
	for _, f := range t.Waits() {
		file, _, _ := strings.Cut(f.Where, ":")
		fmt.Fprintf(b, "| %s | %s |\n", strings.TrimPrefix(file, "pkg/"), f.What)
	}
}
