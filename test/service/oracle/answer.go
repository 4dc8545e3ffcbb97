package oracle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Answer is what a client got for one connection.
type Answer struct {
	// Backend that answered; empty if none did.
	Backend string
	// Seen is the client's address as the backend saw it.
	Seen netip.Addr
	// Refused: a reset, or port unreachable. Failed is what the client's system said when it was anything else, such as that the time was over.
	Refused bool
	// Barred: the client's own system would not send, which is how a process learns that its node refuses or drops what it sends (EPERM).
	Barred bool
	Failed string
}

// String is for people.
func (a Answer) String() string {
	switch {
	case a.Backend != "":
		return fmt.Sprintf("%s (sees %s)", a.Backend, a.Seen)
	case a.Refused:
		return "refused"
	case a.Barred:
		return "its own system would not send"
	}
	return a.Failed
}

// String is what is expected, for people.
func (e Expectation) String() string {
	var out []string
	if len(e.Backends) > 0 {
		how := map[[2]bool]string{{true, false}: "each of ", {false, true}: "always the same of "}[[2]bool{e.Each, e.One}]
		out = append(out, how+strings.Join(e.Backends, ","))
	}
	if e.Kept {
		out = append(out, "the client's address kept")
	}
	if e.Refused {
		out = append(out, "refused")
	}
	if e.Dropped {
		out = append(out, "dropped")
	}
	return strings.Join(out, ", ") + " (" + e.Why + ")"
}

// Check says what is wrong with the answers that a client got one after another; empty if nothing is. A client stops asking when it has failed.
func (e Expectation) Check(from Client, answers []Answer) string {
	if len(answers) == 0 {
		return "it was not asked"
	}
	seen := map[string]bool{}
	for _, a := range answers {
		if a.Backend == "" {
			if a.Barred && (e.Refused || e.Dropped) || a.Refused && e.Refused || !a.Refused && !a.Barred && e.Dropped {
				continue
			}
			return a.String()
		}
		seen[a.Backend] = true
		if !slices.Contains(e.Backends, a.Backend) {
			return "answered by " + a.String()
		}
		if e.Kept && a.Backend != from.Backend && !slices.Contains(from.Addrs, a.Seen) {
			return fmt.Sprintf("%s, the client has %v", a, from.Addrs)
		}
	}
	if len(seen) == 0 {
		return ""
	}
	if e.Each && len(seen) != len(e.Backends) {
		return fmt.Sprintf("%d connections, answered by %d of %d backends: %v", len(answers), len(seen), len(e.Backends), answers[0])
	}
	if e.One && len(seen) > 1 {
		return fmt.Sprintf("answered by %d backends", len(seen))
	}
	return ""
}
