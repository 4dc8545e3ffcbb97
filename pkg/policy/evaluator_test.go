package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// evaluator does what OVN does with rows: the ACLs of all groups are in one pipeline of the switch, and of those that match one with the highest priority decides.
type evaluator struct {
	scope scope
	// acls by direction, the highest priority first.
	acls map[nbdb.ACLDirection][]compiledACL
}

type compiledACL struct {
	*nbdb.ACL
	match predicate
}

// identifiers is what OVN takes as the name of a group or set in a match (ovn-nb(5)).
var identifiers = regexp.MustCompile(`^[a-zA-Z_.][a-zA-Z_.0-9]*$`)

// newEvaluator also holds what OVN would refuse or misunderstand: names, unknown groups and sets, columns out of range.
func newEvaluator(rows Rows) (*evaluator, error) {
	e := &evaluator{
		scope: scope{groups: map[string]map[ident.PortName]bool{}, sets: map[string][]netip.Prefix{}}, acls: map[nbdb.ACLDirection][]compiledACL{},
	}
	for _, g := range rows.Groups {
		if !identifiers.MatchString(g.Row.Name) {
			return nil, fmt.Errorf("port group %q is no identifier", g.Row.Name)
		}
		e.scope.groups[g.Row.Name] = map[ident.PortName]bool{}
		for _, p := range g.Ports {
			e.scope.groups[g.Row.Name][p] = true
		}
	}
	for _, s := range rows.Sets {
		if err := e.addSet(s); err != nil {
			return nil, err
		}
	}
	for _, a := range rows.ACLs {
		if err := e.addACL(a); err != nil {
			return nil, err
		}
	}
	for _, acls := range e.acls {
		slices.SortStableFunc(acls, func(a, b compiledACL) int { return cmp.Compare(b.Priority, a.Priority) })
	}
	return e, nil
}

func (e *evaluator) addSet(s *nbdb.AddressSet) error {
	if !identifiers.MatchString(s.Name) {
		return fmt.Errorf("address set %q is no identifier", s.Name)
	}
	e.scope.sets[s.Name] = nil
	for _, text := range s.Addresses {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return fmt.Errorf("address set %s: %w", s.Name, err)
			}
			p = host(a)
		}
		if p.Addr().Is4() != strings.HasSuffix(s.Name, "_4") {
			return fmt.Errorf("address set %s has %s", s.Name, p)
		}
		e.scope.sets[s.Name] = append(e.scope.sets[s.Name], p)
	}
	return nil
}

func (e *evaluator) addACL(a ACL) error {
	if _, ok := e.scope.groups[a.Group]; !ok {
		return fmt.Errorf("ACL %s is of group %q, which is not there", a.Row.Match, a.Group)
	}
	foreign, lb := map[string]string{nbdb.ACLDirectionToLport: "inport", nbdb.ACLDirectionFromLport: "outport"}[a.Row.Direction], a.Row.Options["apply-after-lb"]
	if strings.Contains(a.Row.Match, foreign) || (lb == "true") != (a.Row.Direction == nbdb.ACLDirectionFromLport) {
		return fmt.Errorf("ACL %s %s: %s in it, or apply-after-lb is %q", a.Row.Direction, a.Row.Match, foreign, lb)
	}
	if len(*a.Row.Name) > 63 || a.Row.Priority > 32767 || a.Row.Log && (a.Row.Meter == nil || a.Row.Severity == nil) {
		return fmt.Errorf("ACL %+v: OVN refuses it, or its log has no bounds", *a.Row)
	}
	match, err := parseMatch(a.Row.Match, &e.scope)
	if err != nil {
		return err
	}
	e.acls[a.Row.Direction] = append(e.acls[a.Row.Direction], compiledACL{a.Row, match})
	return nil
}

// admits says whether OVN lets the first packet of a connection pass, and which ACL says so.
func (e *evaluator) admits(k *packet) (ok bool, why string) {
	if k.inport != "" {
		if ok, why = e.direction(nbdb.ACLDirectionFromLport, k); !ok {
			return false, why
		}
	}
	if k.outport == "" {
		return true, why
	}
	return e.direction(nbdb.ACLDirectionToLport, k)
}

func (e *evaluator) direction(d nbdb.ACLDirection, k *packet) (ok bool, why string) {
	var found *nbdb.ACL
	for _, a := range e.acls[d] {
		if found != nil && a.Priority < found.Priority {
			break
		}
		if !a.match(&e.scope, k) {
			continue
		}
		if found != nil && found.Action != a.Action {
			return false, fmt.Sprintf("undefined: %s and %s have one priority", found.Match, a.Match)
		}
		found = a.ACL
	}
	if found == nil {
		return true, "no ACL"
	}
	return found.Action == nbdb.ACLActionAllowRelated, fmt.Sprintf("%d %s: %s", found.Priority, found.Action, found.Match)
}
