package kubectl

import (
	"encoding/json"
	"fmt"
)

// row is a row of an OVSDB table, as ovn-nbctl, ovn-sbctl and ovs-vsctl print it with --format=json (RFC 7047, 5.1).
type row map[string]any

// parseRows reads that.
func parseRows(text string) ([]row, error) {
	var table struct {
		Headings []string
		Data     [][]any
	}
	if err := json.Unmarshal([]byte(text), &table); err != nil {
		return nil, fmt.Errorf("read a table: %w: %.80q", err, text)
	}
	var out []row
	for _, cells := range table.Data {
		r := row{}
		for i, cell := range cells {
			if i < len(table.Headings) {
				r[table.Headings[i]] = cell
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// text is a column of a string, or of a UUID; empty if it has none.
func (r row) text(column string) string {
	switch v := r[column].(type) {
	case string:
		return v
	case []any:
		if len(v) == 2 && v[0] == "uuid" {
			return fmt.Sprint(v[1])
		}
	}
	return ""
}

// texts is a map column.
func (r row) texts(column string) map[string]string {
	out := map[string]string{}
	v, _ := r[column].([]any)
	if len(v) != 2 || v[0] != "map" {
		return out
	}
	pairs, _ := v[1].([]any)
	for _, p := range pairs {
		if kv, ok := p.([]any); ok && len(kv) == 2 {
			out[fmt.Sprint(kv[0])] = fmt.Sprint(kv[1])
		}
	}
	return out
}

// list is a column of a set: what it has, as text; a column with one value is that value.
func (r row) list(column string) []string {
	one := func(v any) string { return row{"": v}.text("") }
	v, ok := r[column].([]any)
	if !ok || len(v) != 2 || v[0] != "set" {
		if s := r.text(column); s != "" {
			return []string{s}
		}
		return nil
	}
	var out []string
	members, _ := v[1].([]any)
	for _, m := range members {
		out = append(out, one(m))
	}
	return out
}
