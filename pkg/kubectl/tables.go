package kubectl

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// dbRow is one of a table of OVN's or Open vSwitch's databases, as ovn-nbctl, ovn-sbctl and ovs-vsctl print it with --format=json: the values of its columns are those of
// RFC 7047, section 5.1.
type dbRow map[string]any

// parseTables reads what list commands printed, one table after another.
func parseTables(text string) ([][]dbRow, error) {
	var out [][]dbRow
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		var table struct {
			Headings []string `json:"headings"`
			Data     [][]any  `json:"data"`
		}
		err := dec.Decode(&table)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read a table of a database: %w", err)
		}
		rows := []dbRow{}
		for _, values := range table.Data {
			if len(values) != len(table.Headings) {
				return nil, fmt.Errorf("read a table of a database: a row has %d values, the table %d columns", len(values), len(table.Headings))
			}
			r := dbRow{}
			for i, v := range values {
				r[table.Headings[i]] = v
			}
			rows = append(rows, r)
		}
		out = append(out, rows)
	}
}

// all are the atoms of a column: none of an empty set, and of a value that is no set, one.
func (r dbRow) all(column string) []string {
	list, ok := r[column].([]any)
	if !ok {
		if r[column] == nil {
			return nil
		}
		return []string{fmt.Sprint(r[column])}
	}
	if len(list) != 2 {
		return nil
	}
	if list[0] == "uuid" {
		return []string{fmt.Sprint(list[1])}
	}
	members, ok := list[1].([]any)
	if !ok || list[0] != "set" {
		return nil
	}
	var out []string
	for _, m := range members {
		out = append(out, dbRow{"": m}.all("")...)
	}
	return out
}

// text is a column with at most one atom, empty without.
func (r dbRow) text(column string) string {
	return strings.Join(r.all(column), " ")
}

// pairs are those of a map.
func (r dbRow) pairs(column string) map[string]string {
	out := map[string]string{}
	list, ok := r[column].([]any)
	if !ok || len(list) != 2 || list[0] != "map" {
		return out
	}
	pairs, ok := list[1].([]any)
	if !ok {
		return out
	}
	for _, p := range pairs {
		if kv, ok := p.([]any); ok && len(kv) == 2 {
			out[fmt.Sprint(kv[0])] = fmt.Sprint(kv[1])
		}
	}
	return out
}
