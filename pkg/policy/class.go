package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// classSpec says which pods belong to a class: those of one namespace, or of the namespaces that a selector selects, that the pods' selector selects; if within is
// given, those of them that have an address in it, with these addresses.
type classSpec struct {
	namespace  string // empty: namespaces says
	namespaces selector
	pods       selector
	within     []netip.Prefix
	text       string // the same for equal classes
}

func podsOf(namespace string, pods selector) classSpec {
	return classSpec{namespace: namespace, pods: pods, text: fmt.Sprintf("pods %s in namespace %s", pods, namespace)}
}

func podsWhere(namespaces, pods selector) classSpec {
	return classSpec{namespaces: namespaces, pods: pods, text: fmt.Sprintf("pods %s in namespaces %s", pods, namespaces)}
}

// podsWithin are the pods of all namespaces with an address in a block.
func podsWithin(block []netip.Prefix) classSpec {
	return classSpec{within: block, text: "pods within " + blockText(block)}
}

func everyPod() classSpec { return podsWhere(selector{}, selector{}) }

func (c classSpec) compare(d classSpec) int { return cmp.Compare(c.text, d.text) }

func (c classSpec) matches(p *Pod) bool {
	if !c.pods.matches(p.Labels) {
		return false
	}
	for _, a := range p.IPs {
		if c.has(a) {
			return true
		}
	}
	return c.within == nil
}

// has says whether an address of a member counts.
func (c classSpec) has(a netip.Addr) bool { return c.within == nil || holds(c.within, a) }

func blockText(block []netip.Prefix) string {
	texts := make([]string, len(block))
	for i, p := range block {
		texts[i] = p.String()
	}
	return strings.Join(texts, " ")
}

// class is a classSpec with its members. A class exists while a view needs it.
type class struct {
	spec    classSpec
	members map[*pod]struct{}
	views   map[*view]struct{}
}

// pod is a Pod that the index knows, and the classes that it belongs to.
type pod struct {
	Pod
	classes map[*class]struct{}
}
