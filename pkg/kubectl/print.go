package kubectl

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/yaml"
)

// format is what -o asks for.
type format string

// The formats. Empty is a table.
const (
	wide     format = "wide"
	asJSON   format = "json"
	asYAML   format = "yaml"
	asTable  format = ""
	formats         = "wide, json or yaml"
	noColumn        = "-"
)

// String implements pflag.Value.
func (f *format) String() string { return string(*f) }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case asTable, wide, asJSON, asYAML:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("want %s", formats)
}

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

// object prints an object or a list as it is in the API, with its kind.
func (f *format) object(w io.Writer, o runtime.Object, scheme *runtime.Scheme) error {
	kinded := o.DeepCopyObject()
	if err := setKinds(kinded, scheme); err != nil {
		return err
	}
	b, err := json.MarshalIndent(kinded, "", "    ")
	if err != nil {
		return err
	}
	if *f == asYAML {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
	}
	say(w, "%s", strings.TrimSuffix(string(b), "\n"))
	return nil
}

// setKinds writes the kinds into an object, and into those of a list, which typed clients leave out.
func setKinds(o runtime.Object, scheme *runtime.Scheme) error {
	kind, err := apiutil.GVKForObject(o, scheme)
	if err != nil {
		return err
	}
	o.GetObjectKind().SetGroupVersionKind(kind)
	if _, list := o.(client.ObjectList); !list {
		return nil
	}
	return meta.EachListItem(o, func(item runtime.Object) error {
		item.GetObjectKind().SetGroupVersionKind(itemKind(kind))
		return nil
	})
}

func itemKind(list schema.GroupVersionKind) schema.GroupVersionKind {
	return list.GroupVersion().WithKind(strings.TrimSuffix(list.Kind, "List"))
}

// table aligns columns: what was wide stays wide, so that lines that come later are in their columns.
type table struct {
	out    io.Writer
	widths []int
}

// reserve makes columns as wide as examples of what may come, by their headers.
func (t *table) reserve(header []string, examples map[string]string) {
	for _, name := range header {
		t.widths = append(t.widths, utf8.RuneCountInString(examples[name]))
	}
}

// rows writes rows.
func (t *table) rows(rows ...[]string) {
	for _, row := range rows {
		for i, cell := range row {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell + strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+3))
		}
		say(t.out, "%s", strings.TrimRight(line.String(), " "))
	}
}

// filled is a cell, which is never empty: columns could not be told apart.
func filled(s string) string {
	if s == "" {
		return noColumn
	}
	return s
}
