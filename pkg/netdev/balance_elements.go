package netdev

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// element is where one element of a map or set is: the object's name, and the key as nftables writes it.
type element struct{ object, key string }

// elements are those of one frontend, with their values; "" in a set.
type elements map[element]string

// Names of the maps and sets, without class and family. Those of "outside" are for clients outside, where they have backends of their own.
const (
	mapPicks    = "picks"
	mapBackends = "backends"
	mapRefused  = "refused"
	mapSticky   = "sticky"
	outside     = "outside-"
	// setRestricted are the frontends that not everybody may reach, setPermitted who may.
	setRestricted = "restricted"
	setPermitted  = "permitted"
)

// The classes of frontends: addresses, and the host's own.
const (
	classVIPs  = "vips"
	classNodes = "nodes"
)

// onHost: the frontend is at the host's own addresses.
func (f Frontend) onHost() bool { return f.Addr.IsUnspecified() }

func (f Frontend) class() string {
	if f.onHost() {
		return classNodes
	}
	return classVIPs
}

// version is 4 or 6.
func (f Frontend) version() string { return version(f.Addr) }

func version(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// object names a map of the frontend's class and family.
func (f Frontend) object(name string) string { return name + "-" + f.class() + f.version() }

func (f Frontend) backendsMap(side string) string {
	return f.object(side+mapBackends) + "-" + string(f.Protocol)
}

// key is the frontend's in its maps.
func (f Frontend) key() string {
	k := string(f.Protocol) + " . " + strconv.Itoa(int(f.Port))
	if f.onHost() {
		return k
	}
	return f.Addr.String() + " . " + k
}

// elements are what the table has for a frontend. The backends are numbered as they stand.
func (f Frontend) elements(b Balance) elements {
	out := make(elements, len(b.All.Backends)+1)
	f.add(out, "", b.All, b.Affinity)
	if b.Outside != nil {
		f.add(out, outside, *b.Outside, b.Affinity)
	}
	if b.Affinity > 0 {
		out[element{f.object(mapSticky), f.key()}] = "jump " + f.noteChain()
	}
	if b.Sources != nil && !f.onHost() {
		out[element{setRestricted + f.version(), f.key()}] = ""
		for _, s := range b.Sources {
			if s.IsValid() && s.Addr().Is4() == f.Addr.Is4() {
				out[element{setPermitted + f.version(), f.key() + " . " + s.Masked().String()}] = ""
			}
		}
	}
	return out
}

func (f Frontend) add(out elements, side string, c Choice, affinity time.Duration) {
	if len(c.Backends) == 0 {
		verdict := "goto refuse"
		if c.Silent {
			verdict = "drop"
		}
		out[element{f.object(side + mapRefused), f.key()}] = verdict
		if side == outside { // it must not fall to the backends of all
			out[element{f.object(side + mapPicks), f.key()}] = "accept"
		}
		return
	}
	chain := f.pickChain(side, len(c.Backends))
	if affinity > 0 {
		chain = f.stickChain(side)
	}
	out[element{f.object(side + mapPicks), f.key()}] = "goto " + chain
	for i, at := range c.Backends {
		out[element{f.backendsMap(side), f.key() + " . " + strconv.Itoa(i)}] = at.Addr().String() + " . " + strconv.Itoa(int(at.Port()))
	}
}

// edits are changes of elements.
type edits struct{ remove, add []knftables.Object }

// diff adds what makes now of old. An element that gets another value is removed and added.
func (e *edits) diff(old, now elements) {
	for at, value := range old {
		if v, still := now[at]; !still || v != value {
			e.remove = append(e.remove, at.knft(value))
		}
	}
	for at, value := range now {
		if v, was := old[at]; !was || v != value {
			e.add = append(e.add, at.knft(value))
		}
	}
}

// knft is the element with its value.
func (at element) knft(value string) *knftables.Element {
	out := &knftables.Element{Key: strings.Split(at.key, " . ")}
	if value == "" {
		out.Set = at.object
		return out
	}
	out.Map, out.Value = at.object, strings.Split(value, " . ")
	return out
}

// write removes first: of two frontends one may have given to the other what it had.
func (e *edits) write(tx *knftables.Transaction) {
	for _, o := range e.remove {
		tx.Delete(o)
	}
	for _, o := range e.add {
		tx.Add(o)
	}
}

// arranged is after with its backends in the order in which before has them, so that few of them get another number.
func arranged(before, after Balance) Balance {
	after.All.Backends = arrange(before.All.Backends, after.All.Backends)
	if after.Outside != nil {
		outside := *after.Outside
		if before.Outside != nil {
			outside.Backends = arrange(before.Outside.Backends, outside.Backends)
		}
		after.Outside = &outside
	}
	return after
}

// arrange returns want, each that is in have at its place there, as long as that is not beyond the end.
func arrange(have, want []netip.AddrPort) []netip.AddrPort {
	left := make(map[netip.AddrPort]struct{}, len(want))
	for _, w := range want {
		left[w] = struct{}{}
	}
	out := make([]netip.AddrPort, len(left))
	for i, h := range have {
		if _, ok := left[h]; ok && i < len(out) {
			out[i] = h
			delete(left, h)
		}
	}
	rest := slices.SortedFunc(maps.Keys(left), netip.AddrPort.Compare)
	for i := range out {
		if !out[i].IsValid() {
			out[i], rest = rest[0], rest[1:]
		}
	}
	return out
}
