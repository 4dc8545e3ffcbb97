package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// namedPort is the name of a container port; the zero value stands for none.
type namedPort struct {
	protocol corev1.Protocol
	name     string
}

// viewSpec says what rows the members of some classes are written to.
type viewSpec struct {
	// isolates: the row is the isolation group of a direction, which all views of that kind share.
	isolates bool
	form     form
	list     classList
	port     namedPort
	// name of the rows, which may get suffixes: number and family.
	name string
}

// form is the kind of row of a view.
type form int

const (
	portGroup form = iota
	addressSet
)

// families in the order and with the suffixes in which address sets are written.
var families = [...]struct {
	suffix, match string
	has           func(netip.Addr) bool
}{{"_4", "ip4", netip.Addr.Is4}, {"_6", "ip6", netip.Addr.Is6}}

// Names of the isolation groups: the pods that are isolated in a direction.
const (
	IngressGroup = "godwit_np_ingress"
	EgressGroup  = "godwit_np_egress"
)

func isolationGroup(d direction) string { return [...]string{IngressGroup, EgressGroup}[d] }

// identifier makes a name that OVN takes in a match ([a-zA-Z_.][a-zA-Z_.0-9]*), short and the same wherever the content is the same. It is long enough that nobody
// finds another content with the same name: whoever may write policies chooses the content.
func identifier(kind byte, content string) string {
	sum := sha256.Sum256([]byte(content))
	return "godwit_" + string(kind) + "_" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// selectionView is the port group of what a policy selects.
func selectionView(c classSpec) viewSpec {
	return viewSpec{form: portGroup, list: listOf(c), name: identifier('s', c.text)}
}

// isolationView puts what a policy selects into the isolation group of a direction.
func isolationView(c classSpec, d direction) viewSpec {
	return viewSpec{isolates: true, form: portGroup, list: listOf(c), name: isolationGroup(d)}
}

// selectionPortView is the port groups of what a policy selects by the number of a named port.
func selectionPortView(c classSpec, p namedPort) viewSpec {
	return viewSpec{form: portGroup, list: listOf(c), port: p, name: identifier('n', p.text()+c.text)}
}

// peersView is the address sets of the pods of a list of peers.
func peersView(list classList) viewSpec {
	return viewSpec{form: addressSet, list: list, name: identifier('p', list.text)}
}

// peersPortView is the address sets of the pods of a list of peers by the number of a named port.
func peersPortView(list classList, p namedPort) viewSpec {
	return viewSpec{form: addressSet, list: list, port: p, name: identifier('d', p.text()+list.text)}
}

func (p namedPort) text() string {
	if p == (namedPort{}) {
		return ""
	}
	return fmt.Sprintf("port %q/%s of ", p.name, p.protocol)
}

// key tells views apart: those of an isolation group share its name.
func (v viewSpec) key() string {
	if v.isolates {
		return v.name + " " + v.list.text
	}
	return v.name
}

// row is the name of the row for a number, which counts for named ports only.
func (v viewSpec) row(number int32) string {
	if v.port == (namedPort{}) {
		return v.name
	}
	return v.name + "_" + strconv.Itoa(int(number))
}

// about describes a row to people.
func (v viewSpec) about(number int32) string {
	text := v.port.text() + v.list.text
	if v.port != (namedPort{}) {
		text = fmt.Sprintf("%d as %s", number, text)
	}
	return text
}

// maxNumbers bounds the numbers at which one pod has a port of one name: each has rows of its own. The API wants one; a pod's containers can have the name at others.
const maxNumbers = 16

// numbers are those that a pod has the view's port at, or one that stands for none.
func (v viewSpec) numbers(p *Pod) []int32 {
	if v.port == (namedPort{}) {
		return []int32{0}
	}
	var out []int32
	for _, np := range p.Ports {
		if len(out) < maxNumbers && np.Name == v.port.name && cmp.Or(np.Protocol, corev1.ProtocolTCP) == v.port.protocol {
			out = append(out, np.Number)
		}
	}
	return out
}

// view is a viewSpec in use.
type view struct {
	viewSpec
	// users are the policies that need it, with how often.
	users   map[*policy]int
	classes []*class
	// members counts them by number.
	members map[int32]int
}
