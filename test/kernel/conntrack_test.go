package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

var update = flag.Bool("update", false, "write testdata anew")

// conntrackFile is what the port's zones had on both sides of a migration: for whoever moves them, or reads what the kernel says.
var conntrackFile = filepath.Join("testdata", "conntrack.json")

// handOff is the content of conntrackFile. Both zones were dumped while the VM still ran on the source, and the target's port was there, closed.
type handOff struct {
	// Kernel and OVS are the versions of it all.
	Kernel string `json:"kernel"`
	OVS    string `json:"ovs"`
	OVN    string `json:"ovn"`
	// Names are those of the addresses. The VM is vm. peer opened connections to it and it to peer, and to vip, which OVN's load balancer gives to backend.
	Names  map[netip.Addr]string `json:"names"`
	Source zoneDump              `json:"source"`
	// Target is the zone of a port that is still closed: it has entries of what was cloned to it, and they are wrong.
	Target zoneDump `json:"target"`
}

// zoneDump is a zone's content.
type zoneDump struct {
	Node string `json:"node"`
	Zone int    `json:"zone"`
	// Entries as conntrack(8) prints them.
	Entries []string `json:"entries"`
	// Messages of ctnetlink, hexadecimal, without the netlink header: struct nfgenmsg and attributes. Of the same moment, nearly.
	Messages []string `json:"messages"`
}

// addresses of the load balancer.
var vips = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::10")}

// TestKernelConntrack looks at the zone of a VM's port on both sides of a migration: what would have to be moved, and what is in its place. Its shape is that of
// testdata/conntrack.json; -update writes that anew.
func TestKernelConntrack(t *testing.T) {
	s := newScene(t, "conntrack")
	peer, backend := s.pod(2, "peer"), s.pod(2, "backend")
	s.pod(1, "pad") // or a port would have the same zone on both nodes, which it has only by chance
	v := s.vm(0, "vm")
	s.guard(v, backend)
	names := map[netip.Addr]string{}
	for i := range vips {
		names[v.Live.Addrs()[i]], names[peer.Addrs()[i]], names[backend.Addrs()[i]], names[vips[i]] = "vm", "peer", "backend", "vip"
	}
	s.talk(v, peer, backend)
	source := v.Live.Node
	if _, _, err := v.Migration(t.Context(), s.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	s.asked(v, "node1,node2", "rarp")
	if *update {
		time.Sleep(10 * time.Second) // until nothing is new any more
		s.writeHandOff(v, handOff{Names: names, Source: zoneDump{Node: source.Name}, Target: zoneDump{Node: s.Nodes[1].Name}})
		return
	}
	text, err := os.ReadFile(conntrackFile)
	if err != nil {
		t.Fatal(err)
	}
	var want handOff
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	for _, side := range []struct {
		name string
		node *cluster.Node
		want zoneDump
	}{{"source", source, want.Source}, {"target", s.Nodes[1], want.Target}} {
		s.await("zone of the port on the "+side.name, func(ctx context.Context) error {
			got, err := zone(ctx, v, side.node)
			if err != nil {
				return err
			}
			if d := cmp.Diff(shape(side.want.Entries, want.Names), shape(got.Entries, names)); d != "" {
				return fmt.Errorf("its entries (-want +got, `go test ./test/kernel -run Conntrack -update` takes what is got):\n%s", d)
			}
			if len(got.Messages) < len(got.Entries)/2 {
				return fmt.Errorf("%d messages for %d entries", len(got.Messages), len(got.Entries))
			}
			return nil
		})
	}
}

// guard puts a VM behind rules and in front of a load balancer, as policy and services will: without them OVN tracks nothing.
func (s *scene) guard(v *cluster.VM, backend *cluster.Pod) {
	s.t.Helper()
	const group, lb = "kernel-conntrack", "kernel-conntrack"
	network := s.nb("--bare", "--columns=name", "find", "logical_switch", "external_ids:\"godwit.dev/owner\"=subnet")
	rule := func(direction, priority, match, verdict string) {
		s.nb("--type=port-group", "acl-add", group, direction, priority, match, verdict)
	}
	s.nb("pg-add", group, string(v.Port()))
	rule("to-lport", "1002", "outport == @"+group+" && (tcp.dst == 7 || udp.dst == 7)", "allow-related")
	rule("to-lport", "1001", "outport == @"+group+" && ip", "drop")
	s.nb("--type=port-group", "--apply-after-lb", "acl-add", group, "from-lport", "1001", "inport == @"+group+" && ip", "allow-related")
	args := []string{}
	for i, vip := range vips {
		args = append(args, "--", "--may-exist", "lb-add", lb, netip.AddrPortFrom(vip, 7).String(), netip.AddrPortFrom(backend.Addrs()[i], 7).String(), "tcp")
	}
	s.nb(append(args[1:], "--", "ls-lb-add", network, lb)...)
	s.t.Cleanup(func() {
		if _, err := s.NBCtl(context.WithoutCancel(s.t.Context()), "ls-lb-del", network, lb, "--", "lb-del", lb, "--", "pg-del", group); err != nil {
			s.t.Errorf("remove rules: %v", err)
		}
	})
}

// talk opens what is tracked, and keeps it busy: TCP and UDP both ways, TCP through the load balancer, SCTP.
func (s *scene) talk(v *cluster.VM, peer, backend *cluster.Pod) {
	s.t.Helper()
	fromPeer, fromVM := s.traffic(peer.Netns), s.traffic(v.Netns)
	s.traffic(backend.Netns)
	echo := traffic.Echoing{Connections: 2, Interval: traffic.Duration{Duration: 200 * time.Millisecond}}
	probe := traffic.Probing{Interval: traffic.Duration{Duration: 200 * time.Millisecond}}
	silence := traffic.Duration{Duration: 10 * time.Minute}
	s.begin(fromPeer, traffic.Spec{Peers: v.Live.Addrs(), Echo: echo, Probe: probe, Silence: silence})
	s.begin(fromVM, traffic.Spec{Peers: peer.Addrs(), Echo: echo, Probe: probe, Silence: silence})
	s.begin(fromVM, traffic.Spec{Peers: vips, Echo: echo, Silence: silence})
	at := netip.AddrPortFrom(peer.Addrs()[0], 9000)
	log := s.daemon(peer.Netns, "tool", "sctp", "serve", at.String())
	s.says(log, "listening")
	s.says(s.daemon(v.Netns, "tool", "sctp", "ask", at.String(), "0"), "message 1 from")
}

// says waits until a log has a word.
func (s *scene) says(log, word string) {
	s.t.Helper()
	s.await("word in "+log, func(ctx context.Context) error {
		b, err := s.ReadFile(ctx, log)
		if err == nil && !strings.Contains(string(b), word) {
			err = fmt.Errorf("it has %q, want %q", b, word)
		}
		return err
	})
}

// zone dumps the zone of the VM's port on a node.
func zone(ctx context.Context, v *cluster.VM, n *cluster.Node) (zoneDump, error) {
	d := zoneDump{Node: n.Name}
	var err error
	if d.Zone, err = n.Zone(ctx, v.Port()); err != nil || d.Zone == 0 {
		return d, errors.Join(fmt.Errorf("the zone of port %s on %s is %d, want another than 0", v.Port(), n.Name, d.Zone), err)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := n.In(ctx, "conntrack", "-L", "-f", family, "-w", fmt.Sprint(d.Zone), "-o", "extended")
		if err != nil {
			return d, err
		}
		for line := range strings.Lines(out) {
			d.Entries = append(d.Entries, strings.TrimSpace(line))
		}
	}
	slices.Sort(d.Entries)
	out, err := n.In(ctx, "tool", "conntrack", fmt.Sprint(d.Zone))
	d.Messages = strings.Fields(out)
	return d, err
}

// writeHandOff dumps both zones and writes conntrackFile.
func (s *scene) writeHandOff(v *cluster.VM, h handOff) {
	s.t.Helper()
	for _, d := range []*zoneDump{&h.Source, &h.Target} {
		for _, n := range s.Nodes {
			if n.Name != d.Node {
				continue
			}
			var err error
			if *d, err = zone(s.t.Context(), v, n); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	h.Kernel = s.run("", "uname", "-r")
	h.OVS, _, _ = strings.Cut(s.run("", "ovs-vswitchd", "--version"), "\n")
	h.OVN, _, _ = strings.Cut(s.run("", "ovn-controller", "--version"), "\n")
	b, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(conntrackFile), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(conntrackFile, append(b, '\n'), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// What differs from run to run: ephemeral ports, numbers of zones, how long an entry lives and who looks at it.
var (
	ephemeral = regexp.MustCompile(`port=(3[2-9]|[4-6]\d)\d{3}\b`)
	fleeting  = regexp.MustCompile(`^(\S+ +\d+ \S+ +\d+) \d+ `)
	counted   = regexp.MustCompile(` (zone|use|id)=\d+`)
	endpoint  = regexp.MustCompile(`(src|dst)=(\S+)`)
)

// shape is what entries have in common with those of another run: each kind once, sorted. ICMP comes and goes.
func shape(entries []string, names map[netip.Addr]string) []string {
	var out []string
	for _, e := range entries {
		if strings.Contains(e, "icmp") {
			continue
		}
		e = counted.ReplaceAllString(fleeting.ReplaceAllString(ephemeral.ReplaceAllString(e, "port=ephemeral"), "$1 "), "")
		e = endpoint.ReplaceAllStringFunc(e, func(s string) string {
			key, text, _ := strings.Cut(s, "=")
			addr, err := netip.ParseAddr(text)
			if err != nil || names[addr] == "" {
				return s
			}
			return key + "=" + names[addr]
		})
		out = append(out, strings.Join(strings.Fields(e), " "))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
