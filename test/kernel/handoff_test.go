package kernel

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// handOffPass is what `tool handoff` says of a pass.
type handOffPass struct {
	Dumped, Due, Messages, Bytes        int
	Made, Renewed, Replaced, Unlabelled int
	Left, Refused                       map[conntrack.Reason]int
	Error                               string
	// DumpTook and UpsertTook are in milliseconds.
	DumpTook, UpsertTook, PeakKiB int
}

// zoneAt is a zone of a network namespace, as the tool is told.
type zoneAt struct {
	netns string
	zone  int
}

func (z zoneAt) args() []string { return []string{z.netns, fmt.Sprint(z.zone)} }

// handOff moves a zone's entries to another, in passes of which none may be refused.
func (s *scene) handOff(from, to zoneAt, passes int) []handOffPass {
	s.t.Helper()
	out := s.run("", slices.Concat([]string{"tool", "handoff"}, from.args(), to.args(), []string{fmt.Sprint(passes)})...)
	got := decodeLines[handOffPass](s.t, out)
	for _, p := range got {
		s.t.Logf("from %v to %v: %+v", from, to, p)
		if len(p.Left)+len(p.Refused)+p.Unlabelled > 0 || p.Error != "" {
			s.t.Errorf("entries were left behind: %v, refused: %v %s, lost their labels: %d", p.Left, p.Refused, p.Error, p.Unlabelled)
		}
	}
	if len(got) != passes {
		s.t.Fatalf("%d passes, want %d: %s", len(got), passes, out)
	}
	return got
}

// entriesOf is what of a zone's entries is the same wherever they are.
func (s *scene) entriesOf(z zoneAt) []conntrack.Entry {
	s.t.Helper()
	entries, err := s.entriesIn(s.t.Context(), z)
	if err != nil {
		s.t.Fatal(err)
	}
	return entries
}

func (s *scene) entriesIn(ctx context.Context, z zoneAt) ([]conntrack.Entry, error) {
	s.t.Helper()
	out, err := s.In(ctx, "", append([]string{"tool", "entries"}, z.args()...)...)
	if err != nil {
		return nil, err
	}
	entries := decodeLines[conntrack.Entry](s.t, out)
	for i := range entries {
		e := &entries[i]
		e.Zone, e.Timeout, e.TCP.Flags = 0, 0, [2]uint8{}
		e.Status &= conntrack.SeenReply | conntrack.Assured
	}
	slices.SortFunc(entries, func(a, b conntrack.Entry) int { return strings.Compare(a.String(), b.String()) })
	return entries, nil
}

// decodeLines decodes a JSON object a line.
func decodeLines[T any](t *testing.T, out string) []T {
	t.Helper()
	var all []T
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var v T
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		all = append(all, v)
	}
	return all
}

// sameEntries compares the entries of two zones.
func (s *scene) sameEntries(from, to zoneAt) []conntrack.Entry {
	s.t.Helper()
	want := s.entriesOf(from)
	if d := cmp.Diff(want, s.entriesOf(to), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		s.t.Errorf("entries of %v are not those of %v (-want +got):\n%s", to, from, d)
	}
	return want
}

// TestHandoffEntriesMigration moves a VM that is behind rules and talks through a load balancer, and its port's zone with it: each connection goes on. Without that those through
// the load balancer die. The target's zone has wrong entries of clones beforehand.
func TestHandoffEntriesMigration(t *testing.T) {
	s := newScene(t, "handoff-migration")
	peer, backend := s.pod(2, "peer"), s.pod(2, "backend")
	s.pod(1, "pad") // or a port would have the same zone on both nodes, which it has only by chance
	v := s.vm(0, "vm")
	s.guard(v, backend)
	clients := map[string]*traffic.Client{"vm": s.traffic(v.Netns), "peer": s.traffic(peer.Netns), "backend": s.traffic(backend.Netns)}
	echo := traffic.Echoing{Connections: 2, Interval: traffic.Duration{Duration: 200 * time.Millisecond}}
	silence := traffic.Duration{Duration: 5 * time.Minute}
	type course struct {
		from, to string
		run      traffic.RunID
	}
	var courses []course
	for _, c := range []struct {
		from, to string
		addrs    []netip.Addr
	}{{"vm", "backend", vips}, {"vm", "peer", peer.Addrs()}, {"peer", "vm", v.Live.Addrs()}} {
		courses = append(courses, course{c.from, c.to, s.begin(clients[c.from], traffic.Spec{Peers: c.addrs, Echo: echo, Silence: silence})})
	}
	source, from := v.Live, zoneAt{netns: v.Live.Node.Name}
	vmim, target, err := v.Migration(t.Context(), s.Nodes[1])
	if err != nil {
		t.Fatal(err)
	}
	s.asked(v, "node1,node2", "rarp")
	s.activated(v, "")
	to := zoneAt{netns: target.Node.Name}
	s.await("zones of "+string(v.Port()), func(ctx context.Context) (err error) {
		if from.zone, err = source.Node.Zone(ctx, v.Port()); err == nil {
			to.zone, err = target.Node.Zone(ctx, v.Port())
		}
		if err == nil && (from.zone == 0 || to.zone == 0) {
			err = fmt.Errorf("%d and %d, want two numbers", from.zone, to.zone)
		}
		return err
	})
	s.awaitMisled(to)
	if first := s.handOff(from, to, 2)[0]; first.Replaced == 0 {
		t.Errorf("no entry was replaced: %+v", first)
	}
	moved := s.entriesOf(to)
	for _, e := range s.entriesOf(from) {
		if e.Protocol == conntrack.TCP && !slices.Contains(moved, e) {
			t.Errorf("zone %v lacks %v", to, e)
		}
	}
	s.stopped(v) // as QEMU stops it: of what it says after the last pass the target knows nothing, and 0.7 s of it are too much
	s.handOff(from, to, 1)
	if err := v.Arrive(t.Context(), target, "tool", "rarp", "eth0"); err != nil {
		t.Fatal(err)
	}
	s.activated(v, s.Nodes[1].Name)
	s.goes(v)
	s.ended(v, vmim, source)
	for _, c := range courses {
		s.progress(clients[c.to], c.run)
		if open, _ := s.stop(clients[c.from], c.run).Open(); open != echo.Connections {
			t.Errorf("from %s to %s %d connections were opened, want %d", c.from, c.to, open, echo.Connections)
		}
	}
}

// stopped stops a VM until it goes.
func (s *scene) stopped(v *cluster.VM) {
	s.t.Helper()
	if err := v.Stop(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// goes has a VM that was stopped go on.
func (s *scene) goes(v *cluster.VM) {
	s.t.Helper()
	if err := v.Go(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// awaitMisled waits until a zone has taken replies for the beginning of a connection.
func (s *scene) awaitMisled(z zoneAt) {
	s.t.Helper()
	s.await(fmt.Sprintf("wrong entries in zone %v", z), func(ctx context.Context) error {
		out, err := s.In(ctx, "", append([]string{"tool", "entries"}, z.args()...)...)
		if err != nil {
			return err
		}
		entries := decodeLines[conntrack.Entry](s.t, out)
		if !slices.ContainsFunc(entries, func(e conntrack.Entry) bool { return e.Protocol == conntrack.TCP && e.Orig.SrcPort == 7 }) {
			return fmt.Errorf("none of %d entries is one", len(entries))
		}
		return nil
	})
}

// Names and addresses of the scene of routers: a client and a server, one router between them and another that takes its place.
const (
	routerZone, spareZone, otherZone = 7, 9, 10

	routerScene = `
		for ns in ho-client ho-server ho-router ho-spare; do
			ip netns add $ns
			ip -n $ns link set lo up
		done
		for ns in ho-router ho-spare; do
			ip netns exec $ns sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		done
		ip -n ho-client link add eth0 type veth peer name client netns ho-router
		ip -n ho-server link add eth0 type veth peer name server netns ho-router
		ip -n ho-client address add 192.0.2.2/24 dev eth0
		ip -n ho-client address add fd00:c::2/64 dev eth0 nodad
		ip -n ho-server address add 198.51.100.2/24 dev eth0
		ip -n ho-server address add fd00:5::2/64 dev eth0 nodad
		ip -n ho-client link set eth0 up
		ip -n ho-server link set eth0 up
		ip -n ho-client route add default via 192.0.2.1
		ip -n ho-client -6 route add default via fd00:c::1 dev eth0
		ip -n ho-server route add default via 198.51.100.1
		ip -n ho-server -6 route add default via fd00:5::1 dev eth0
	`
	routerLinks = `
		ip -n ROUTER address add 192.0.2.1/24 dev client
		ip -n ROUTER address add fd00:c::1/64 dev client nodad
		ip -n ROUTER address add 198.51.100.1/24 dev server
		ip -n ROUTER address add fd00:5::1/64 dev server nodad
		ip -n ROUTER link set client up
		ip -n ROUTER link set server up
	`
	// routerRules: what is sent to .1 is sent on to the server in the router's name, what to .2 in the client's, and what to the server itself in the router's. NEW is what becomes
	// of a packet of no connection.
	routerRules = `
		ip netns exec ROUTER nft -f - <<-END
		table inet handoff {
			chain zone { type filter hook prerouting priority raw; ct zone set ZONE; }
			chain destination {
				type nat hook prerouting priority dstnat;
				ip daddr { 203.0.113.1, 203.0.113.2 } dnat ip to 198.51.100.2
				ip6 daddr { fd00:f::1, fd00:f::2 } dnat ip6 to fd00:5::2
			}
			chain source {
				type nat hook postrouting priority srcnat;
				ct original ip daddr 203.0.113.2 accept
				ct original ip6 daddr fd00:f::2 accept
				oifname "server" meta nfproto ipv4 snat ip to 198.51.100.1
				oifname "server" meta nfproto ipv6 snat ip6 to fd00:5::1
			}
			chain forward { type filter hook forward priority filter; ct state established accept; ct state new NEW; drop; }
		}
		END
	`
	routerSwap = `
		ip -n ho-router link set client netns ho-spare
		ip -n ho-router link set server netns ho-spare
	`
)

// routerTargets are the server as the client sees it: with NAT of both sides, of the destination alone, and of the source alone.
var routerTargets = []netip.Addr{
	netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("198.51.100.2"),
	netip.MustParseAddr("fd00:f::1"), netip.MustParseAddr("fd00:f::2"), netip.MustParseAddr("fd00:5::2"),
}

// router does to a router of the scene what a script says.
func (s *scene) router(script, name string, zone int, unknown string) {
	s.t.Helper()
	r := strings.NewReplacer("ROUTER", name, "ZONE", fmt.Sprint(zone), "NEW", unknown, "\n\t\t", "\n")
	s.run("", "bash", "-ec", r.Replace(script))
}

// removedLater has namespaces go with the test.
func (s *scene) removedLater(netns ...string) {
	s.t.Cleanup(func() {
		for _, ns := range netns {
			if _, err := s.In(context.WithoutCancel(s.t.Context()), "", "ip", "netns", "delete", ns); err != nil {
				s.t.Errorf("delete namespace %s: %v", ns, err)
			}
		}
	})
}

var timeouts = regexp.MustCompile(`08000700[0-9a-f]{8}`)

// raw are a zone's entries as the kernel's messages have them, but for their timeouts, which run.
func (s *scene) raw(z zoneAt) string {
	s.t.Helper()
	return timeouts.ReplaceAllString(s.run(z.netns, "tool", "conntrack", fmt.Sprint(z.zone)), "timeout")
}

// TestHandoffEntriesNAT: connections through a router that changes addresses of either side, over TCP, UDP and ICMP in both families, go on through another that admits no new one, to
// whose zone their entries were moved over wrong ones. Another zone's entries stay as they are, byte for byte.
func TestHandoffEntriesNAT(t *testing.T) {
	s := newScene(t, "handoff-nat")
	s.removedLater("ho-client", "ho-server", "ho-router", "ho-spare")
	s.router(routerScene, "", 0, "")
	s.router(routerRules+routerLinks, "ho-router", routerZone, "accept")
	s.router(routerRules, "ho-spare", spareZone, "drop")
	client, server := s.traffic("ho-client"), s.traffic("ho-server")
	often := traffic.Duration{Duration: 200 * time.Millisecond}
	run := s.begin(client, traffic.Spec{
		Peers: routerTargets, Echo: traffic.Echoing{Connections: len(routerTargets), Interval: often}, Probe: traffic.Probing{Interval: often},
		Silence: traffic.Duration{Duration: 5 * time.Minute},
	})
	pings := map[netip.Addr]string{}
	for _, a := range routerTargets {
		program := "ping"
		if a.Is6() {
			program = "ping6"
		}
		pings[a] = s.daemon("ho-client", program, a.String())
		s.says(pings[a], "seq=")
	}
	from, to, other := zoneAt{"ho-router", routerZone}, zoneAt{"ho-spare", spareZone}, zoneAt{"ho-spare", otherZone}
	s.awaitEntries(from, 3*len(routerTargets))
	s.mislead(from, other)
	before, wrong := s.raw(other), s.mislead(from, to)
	first := s.handOff(from, to, 2)[0]
	if wrong < 2*len(routerTargets) || first.Replaced != wrong || first.Made != first.Dumped-wrong {
		t.Errorf("%+v, want %d replaced, one over TCP and one over UDP of each way at least, and the rest made", first, wrong)
	}
	s.sameEntries(from, to)
	if after := s.raw(other); before == "" || before != after {
		t.Errorf("another zone's entries have changed (-was +is):\n%s", cmp.Diff(before, after))
	}
	s.run("", "bash", "-ec", routerSwap)
	s.router(routerLinks, "ho-spare", 0, "")
	s.progress(server, run)
	for a, log := range pings {
		b, err := s.ReadFile(t.Context(), log)
		if err != nil {
			t.Fatal(err)
		}
		s.await("ping of "+a.String(), func(ctx context.Context) error {
			now, err := s.ReadFile(ctx, log)
			if err == nil && strings.Count(string(now), "seq=") < strings.Count(string(b), "seq=")+2 {
				err = fmt.Errorf("it says %s", now)
			}
			return err
		})
	}
	for _, p := range s.stop(client, run).Probes {
		if p.Gap.Open || p.Counts.Corrupt > 0 {
			t.Errorf("probes to %s: %+v, no answer for %s, to the end: %v", p.Peer, p.Counts, p.Gap.Length(), p.Gap.Open)
		}
	}
}

// mislead puts wrong entries into a zone, and returns how many.
func (s *scene) mislead(from, to zoneAt) (n int) {
	s.t.Helper()
	out := s.run("", slices.Concat([]string{"tool", "mislead"}, from.args(), to.args())...)
	if _, err := fmt.Sscan(out, &n); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return n
}

// awaitEntries waits until a zone has so many entries.
func (s *scene) awaitEntries(z zoneAt, n int) {
	s.t.Helper()
	s.await(fmt.Sprintf("entries of zone %v", z), func(ctx context.Context) error {
		out, err := s.In(ctx, "", append([]string{"tool", "entries"}, z.args()...)...)
		if got := strings.Count(out, "\n"); err == nil && got < n {
			err = fmt.Errorf("%d, want %d", got, n)
		}
		return err
	})
}

// TestHandoffEntriesMany moves 50,000 connections, and looks again: nothing has changed. How long it takes is logged: on an emulated processor it says little.
func TestHandoffEntriesMany(t *testing.T) {
	const (
		many    = 50_000
		mostKiB = 256 << 10
	)
	s := newScene(t, "handoff-many")
	s.removedLater("ho-full", "ho-empty")
	s.run("", "bash", "-ec", "ip netns add ho-full\nip netns add ho-empty")
	from, to := zoneAt{"ho-full", routerZone}, zoneAt{"ho-empty", spareZone}
	s.run("", slices.Concat([]string{"tool", "fill"}, from.args(), []string{fmt.Sprint(many), "10.0.0.3"})...)
	passes := s.handOff(from, to, 2)
	if passes[0].Made != many || passes[1].Dumped != many || passes[1].Due != 0 {
		t.Errorf("%+v, want %d made by the first and none due in the second", passes, many)
	}
	if peak := passes[1].PeakKiB; peak > mostKiB {
		t.Errorf("it needed %d KiB, want at most %d", peak, mostKiB)
	}
}
