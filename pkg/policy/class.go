package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
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
	text       string // the same for equal classes, and for no others; brief
}

func podsOf(namespace string, pods selector) classSpec {
	return classSpec{namespace: namespace, pods: pods, text: brief(fmt.Sprintf("pods %s in namespace %s", pods, namespace))}
}

func podsWhere(namespaces, pods selector) classSpec {
	return classSpec{namespaces: namespaces, pods: pods, text: brief(fmt.Sprintf("pods %s in namespaces %s", pods, namespaces))}
}

// podsWithin are the pods of all namespaces with an address in a block.
func podsWithin(block []netip.Prefix) classSpec {
	return classSpec{within: block, text: brief("pods within " + blockText(block))}
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

// classList is classes that are shown together.
type classList struct {
	classes []classSpec
	text    string // the same for equal lists, and for no others; brief
}

func listOf(classes ...classSpec) classList {
	texts := make([]string, len(classes))
	for i, c := range classes {
		texts[i] = c.text
	}
	return classList{classes: classes, text: brief(strings.Join(texts, "; "))}
}

// maxText bounds texts that stand for a content: each named port of a rule has such texts of its own, and whoever may write policies chooses the content.
const maxText = 1024

// brief cuts a text that is longer than maxText. A hash takes the place of the rest: texts that differ stay different.
func brief(text string) string {
	if len(text) <= maxText {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	return text[:maxText] + "… " + hex.EncodeToString(sum[:16])
}

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
