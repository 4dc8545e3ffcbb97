package policy

import (
	"fmt"
	"strings"
)

// render writes rows for a reviewer: the ACLs of each group, and the contents of groups and sets with what they stand for.
func render(rows Rows) string {
	var b strings.Builder
	for _, g := range rows.Groups {
		fmt.Fprintf(&b, "group %s (%s): %s\n", g.Row.Name, g.Row.ExternalIDs["godwit.dev/content"], list(g.Ports))
		for _, a := range rows.ACLs {
			if a.Group != g.Row.Name {
				continue
			}
			log := ""
			if a.Row.Log {
				log = " log=" + *a.Row.Severity
			}
			if a.Row.Label != 0 {
				log += fmt.Sprintf(" label=%d", a.Row.Label)
			}
			fmt.Fprintf(&b, "  %s %d %s%s: %s\n", a.Row.Direction, a.Row.Priority, a.Row.Action, log, a.Row.Match)
		}
	}
	for _, s := range rows.Sets {
		fmt.Fprintf(&b, "set %s (%s): %s\n", s.Name, s.ExternalIDs["godwit.dev/content"], list(s.Addresses))
	}
	return b.String()
}

func list[T ~string](items []T) string {
	if len(items) == 0 {
		return "empty"
	}
	texts := make([]string, len(items))
	for i, s := range items {
		texts[i] = string(s)
	}
	return strings.Join(texts, " ")
}
