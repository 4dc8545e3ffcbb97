package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func mustSpec(t interface{ Fatal(...any) }, cidrs, gateways, exclude []string) Spec {
	s, err := ParseSpec(cidrs, gateways, exclude)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseSpecRejects(t *testing.T) {
	for name, c := range map[string]struct{ cidrs, gateways, exclude []string }{
		"no cidr":                  {},
		"garbage":                  {cidrs: []string{"10.0.0.0"}},
		"host bits":                {cidrs: []string{"10.0.0.1/16"}},
		"one family twice":         {cidrs: []string{"10.0.0.0/16", "10.1.0.0/16"}},
		"three":                    {cidrs: []string{"10.0.0.0/16", "fd00::/64", "10.1.0.0/16"}},
		"too small":                {cidrs: []string{"10.0.0.0/31"}},
		"too large":                {cidrs: []string{"0.0.0.0/0"}},
		"mapped":                   {cidrs: []string{"::ffff:10.0.0.0/112"}},
		"gateway outside":          {cidrs: []string{"10.0.0.0/16"}, gateways: []string{"10.1.0.1"}},
		"gateway is the network":   {cidrs: []string{"10.0.0.0/16"}, gateways: []string{"10.0.0.0"}},
		"gateway is the broadcast": {cidrs: []string{"10.0.0.0/16"}, gateways: []string{"10.0.255.255"}},
		"one gateway of two":       {cidrs: []string{"10.0.0.0/16", "fd00::/64"}, gateways: []string{"10.0.0.1"}},
		"exclude outside":          {cidrs: []string{"10.0.0.0/16"}, exclude: []string{"10.1.0.1"}},
		"exclude backwards":        {cidrs: []string{"10.0.0.0/16"}, exclude: []string{"10.0.0.9-10.0.0.1"}},
		"exclude across":           {cidrs: []string{"10.0.0.0/16"}, exclude: []string{"10.0.255.1-10.1.0.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := ParseSpec(c.cidrs, c.gateways, c.exclude); err == nil {
				t.Errorf("accepted as %v", s)
			}
		})
	}
}

func TestAllocateSkipsReserved(t *testing.T) {
	p := New(mustSpec(t, []string{"fd00::/64", "10.0.0.0/29"}, nil, []string{"10.0.0.2-10.0.0.3", "fd00::2"}))
	var got []string
	for i := range 4 {
		ips, err := p.Allocate(fmt.Sprint(i))
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(ips))
	}
	want := []string{"[10.0.0.4/29 fd00::3/64]", "[10.0.0.5/29 fd00::4/64]", "[10.0.0.6/29 fd00::5/64]"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if used, available := p.Usage(); used != 3 || available != 0 {
		t.Errorf("usage %d used, %d available; want 3, 0", used, available)
	}
}

func TestReleasedAddressIsReusedLast(t *testing.T) {
	p := New(mustSpec(t, []string{"10.0.0.0/28"}, nil, nil))
	a, _ := p.Allocate("a")
	p.Release("a")
	b, _ := p.Allocate("b")
	if a[0] == b[0] {
		t.Errorf("%v was given out again at once", a)
	}
}

func TestClaim(t *testing.T) {
	p := New(mustSpec(t, []string{"10.0.0.0/24"}, nil, []string{"10.0.0.9"}))
	at := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	if err := p.Claim("a", at("10.0.0.5")); err != nil {
		t.Fatal(err)
	}
	if err := p.Claim("a", at("10.0.0.5")); err != nil {
		t.Errorf("claiming again what one has: %v", err)
	}
	for addr, want := range map[string]error{
		"10.0.0.5": ErrTaken, "10.0.0.1": ErrOutOfRange, "10.0.0.0": ErrOutOfRange, "10.0.1.5": ErrOutOfRange, "10.0.0.255": ErrOutOfRange,
	} {
		if err := p.Claim("b", at(addr)); !errors.Is(err, want) {
			t.Errorf("claim of %s: %v, want %v", addr, err, want)
		}
	}
}

// What is excluded while somebody has it stays theirs, by a change as by a restart, and is not given out again.
func TestExcludedAddressIsKept(t *testing.T) {
	cidrs := []string{"10.0.0.0/29"} // .2 to .6 can be given out
	p := New(mustSpec(t, cidrs, nil, nil))
	had, err := p.Allocate("a")
	if err != nil {
		t.Fatal(err)
	}
	narrow := mustSpec(t, cidrs, nil, []string{"10.0.0.2-10.0.0.3"})
	changed, err := p.With(narrow)
	if err != nil {
		t.Fatal(err)
	}
	restarted := New(narrow)
	if err := restarted.Claim("a", []netip.Addr{had[0].Addr()}); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*Pool{"changed": changed, "restarted": restarted} {
		if got := p.Of("a"); !slices.Equal(got, had) {
			t.Errorf("%s: has %v, had %v", name, got, had)
		}
		if err := p.Claim("b", []netip.Addr{had[0].Addr()}); !errors.Is(err, ErrTaken) {
			t.Errorf("%s: another claims it: %v", name, err)
		}
		if used, available := p.Usage(); used != 1 || available != 3 {
			t.Errorf("%s: %d used, %d available; want 1, 3", name, used, available)
		}
		p.Release("a")
		if used, available := p.Usage(); used != 0 || available != 3 {
			t.Errorf("%s: %d used, %d available after the release; want 0, 3", name, used, available)
		}
		for i := range 3 {
			if ips, err := p.Allocate(fmt.Sprint(i)); err != nil || ips[0] == had[0] {
				t.Errorf("%s: %v, %v; want any but %v", name, ips, err, had)
			}
		}
		if ips, err := p.Allocate("last"); !errors.Is(err, ErrFull) {
			t.Errorf("%s: %v, %v; want %v", name, ips, err, ErrFull)
		}
	}
}

func TestAllocateWanted(t *testing.T) {
	p := New(mustSpec(t, []string{"10.0.0.0/24", "fd00::/64"}, nil, []string{"10.0.0.9"}))
	addrs := func(ss ...string) (out []netip.Addr) {
		for _, s := range ss {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	got, err := p.Allocate("a", addrs("fd00::7")...)
	if err != nil || fmt.Sprint(got) != "[10.0.0.2/24 fd00::7/64]" {
		t.Fatalf("%v, %v; want the address that was asked for and one of the other family", got, err)
	}
	for want, list := range map[error][]string{ErrTaken: {"fd00::7"}, ErrOutOfRange: {"10.0.0.9", "10.0.0.1", "10.1.0.1", "10.0.0.5 10.0.0.6"}} {
		for _, l := range list {
			if ips, err := p.Allocate("b", addrs(strings.Fields(l)...)...); !errors.Is(err, want) {
				t.Errorf("%s: %v, %v; want %v", l, ips, err, want)
			}
		}
	}
	if used, _ := p.Usage(); used != 1 {
		t.Errorf("%d addresses are in use after refusals, want 1", used)
	}
	if again, err := p.Allocate("a", addrs("fd00::9")...); err != nil || !slices.Equal(again, got) {
		t.Errorf("%v, %v; want %v: what one has stays", again, err, got)
	}
}

// Of an IPv6 range every address can be had by who asks for it, or had it, though the pool gives out the first of them by itself.
func TestAllocateBeyondWindow(t *testing.T) {
	spec := mustSpec(t, []string{"fd00:50::/64"}, []string{"fd00:50::aaaa:0:0:1"}, []string{"fd00:50::bbbb:0:0:0-fd00:50::bbbb:0:0:f"})
	p, slaac := New(spec), netip.MustParseAddr("fd00:50::867:aff:fef4:6")
	if got, err := p.Allocate("a", slaac); err != nil || got[0].Addr() != slaac {
		t.Fatalf("%v, %v; want %s", got, err, slaac)
	}
	if got, err := p.Allocate("b"); err != nil || got[0].Addr().String() != "fd00:50::1" {
		t.Errorf("%v, %v; want the first of the range", got, err)
	}
	used, available := p.Usage()
	for text, want := range map[string]error{
		slaac.String(): ErrTaken, "fd00:50::aaaa:0:0:1": ErrOutOfRange, "fd00:50::bbbb:0:0:7": ErrOutOfRange, "fd00:51::867:aff:fef4:6": ErrOutOfRange,
	} {
		if ips, err := p.Allocate("c", netip.MustParseAddr(text)); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v; want %v", text, ips, err, want)
		}
	}
	if used != 2 || available != maxWindow-2 {
		t.Errorf("%d used, %d available; want 2 and what is left of the window", used, available)
	}

	next, err := p.With(spec)
	if err != nil || next.Of("a")[0].Addr() != slaac {
		t.Fatalf("%v: a has %v after a change, want %s", err, next.Of("a"), slaac)
	}
	if err := next.Claim("c", []netip.Addr{slaac}); !errors.Is(err, ErrTaken) {
		t.Errorf("claimed twice: %v", err)
	}
	if err := next.Claim("d", []netip.Addr{netip.MustParseAddr("fd00:50::bbbb:0:0:7")}); err != nil {
		t.Errorf("one that was had before it was excluded: %v", err)
	}
	next.Release("a")
	if err := next.Claim("c", []netip.Addr{slaac}); err != nil {
		t.Errorf("after it was released: %v", err)
	}
	if used, _ := next.Usage(); used != 3 {
		t.Errorf("%d used, want 3", used)
	}
}

// A pool is compared with a plain map over any order of operations, with a restart (a new pool that claims what the old one gave out) at any point.
func TestPoolProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{owner: rapid.StringMatching(`[a-z]{1,2}`), owned: map[string][]netip.Prefix{}}
		m.spec = mustSpec(t, modelCIDRs(), nil, modelExcludes()[1])
		m.pool = New(m.spec)
		t.Repeat(map[string]func(*rapid.T){"allocate": m.allocate, "release": m.release, "restart": m.restart, "change": m.change, "": m.check})
	})
}

// model is a pool, and what it must say.
type model struct {
	owner *rapid.Generator[string]
	spec  Spec
	pool  *Pool
	owned map[string][]netip.Prefix
}

func modelCIDRs() []string { return []string{"10.0.0.0/27", "fd00::/123"} }

func modelExcludes() [][]string {
	return [][]string{nil, {"10.0.0.7-10.0.0.9", "fd00::1f"}, {"10.0.0.2-10.0.0.20", "fd00::2-fd00::9"}}
}

func (m *model) allocate(t *rapid.T) {
	o := m.owner.Draw(t, "owner")
	var wanted []netip.Addr
	if rapid.Bool().Draw(t, "wants") {
		wanted = append(wanted, netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "address")}))
	}
	had, has := m.owned[o]
	ips, err := m.pool.Allocate(o, wanted...)
	if errors.Is(err, ErrTaken) || errors.Is(err, ErrOutOfRange) {
		if has || wanted == nil {
			t.Fatalf("%s wants %v: %v", o, wanted, err)
		}
		return
	}
	if err == nil && !has && wanted != nil && ips[0].Addr() != wanted[0] {
		t.Fatalf("%s wants %v and got %v", o, wanted, ips)
	}
	if errors.Is(err, ErrFull) {
		if used, available := m.pool.Usage(); available != 0 || used != int64(len(m.owned)) {
			t.Fatalf("full with %d used, %d available", used, available)
		}
		return
	}
	if has && !cmp.Equal(fmt.Sprint(had), fmt.Sprint(ips)) {
		t.Fatalf("%s had %v and got %v", o, had, ips)
	}
	m.owned[o] = ips
}

func (m *model) release(t *rapid.T) {
	o := m.owner.Draw(t, "owner")
	m.pool.Release(o)
	delete(m.owned, o)
	if has := m.pool.Of(o); has != nil {
		t.Fatalf("%s has %v after its release", o, has)
	}
}

func (m *model) restart(t *rapid.T) {
	m.pool = New(m.spec)
	for o, ips := range m.owned {
		var addrs []netip.Addr
		for _, ip := range ips {
			addrs = append(addrs, ip.Addr())
		}
		if err := m.pool.Claim(o, addrs); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *model) change(t *rapid.T) {
	m.spec = mustSpec(t, modelCIDRs(), nil, rapid.SampledFrom(modelExcludes()).Draw(t, "exclude"))
	next, err := m.pool.With(m.spec)
	if err != nil {
		t.Fatal(err)
	}
	m.pool = next
}

func (m *model) check(t *rapid.T) {
	seen := map[netip.Addr]string{}
	for o, ips := range m.owned {
		for i, ip := range ips {
			if other, dup := seen[ip.Addr()]; dup {
				t.Fatalf("%s and %s both have %s", o, other, ip)
			}
			seen[ip.Addr()] = o
			if !m.spec.CIDRs[i].Contains(ip.Addr()) || ip.Addr() == m.spec.Gateways[i] {
				t.Fatalf("%s got %s", o, ip)
			}
		}
		if !slices.Equal(m.pool.Of(o), ips) {
			t.Fatalf("%s has %v, had %v", o, m.pool.Of(o), ips)
		}
	}
	if used, available := m.pool.Usage(); used != int64(len(m.owned)) || available < 0 {
		t.Fatalf("%d used, want %d; %d available", used, len(m.owned), available)
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add("10.0.0.0/16", "10.0.0.1", "10.0.0.2-10.0.0.3")
	f.Add("fd00::/64", "fd00::1", "fd00::2")
	f.Fuzz(func(t *testing.T, cidr, gateway, exclude string) {
		spec, err := ParseSpec([]string{cidr}, []string{gateway}, []string{exclude})
		if err != nil {
			return
		}
		p := New(spec)
		if ips, err := p.Allocate("x"); err == nil && (!spec.CIDRs[0].Contains(ips[0].Addr()) || ips[0].Addr() == spec.Gateways[0]) {
			t.Errorf("allocated %v from %v", ips, spec)
		}
	})
}
