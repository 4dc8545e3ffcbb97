package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/test/kernel/cluster"
)

// sctpPort is where the VM, its peer and the backend answer SCTP, and sctpVIPs are a load balancer's in front of the backend: one row of OVN's is of one protocol.
const sctpPort = 9000

var sctpVIPs = []netip.Addr{netip.MustParseAddr("10.96.0.12"), netip.MustParseAddr("fd00:10:96::12")}

// association is one of SCTP that goes on: its log has a line for each answer.
type association struct {
	what, log string
}

// answersSCTP has everybody do so, and lets others come to the VM.
func (s *handingOver) answersSCTP() {
	s.t.Helper()
	const lb = "kernel-sctp"
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), sctpPort)
	for _, netns := range []string{s.vm.Netns, s.peer.Netns, s.backend.Netns} {
		s.says(s.daemon(netns, "tool", "sctp", "serve", any6.String()), "listening")
	}
	s.nb("--type=port-group", "acl-add", "kernel-conntrack", "to-lport", "1002", fmt.Sprintf("outport == @kernel-conntrack && sctp.dst == %d", sctpPort), "allow-related")
	network := s.nb("--bare", "--columns=name", "find", "logical_switch", "external_ids:\"godwit.dev/owner\"=subnet")
	for i, vip := range sctpVIPs {
		s.nb("--may-exist", "lb-add", lb, netip.AddrPortFrom(vip, sctpPort).String(), netip.AddrPortFrom(s.backend.Addrs()[i], sctpPort).String(), "sctp")
	}
	s.nb("ls-lb-add", network, lb)
	s.t.Cleanup(func() {
		if _, err := s.NBCtl(context.WithoutCancel(s.t.Context()), "ls-lb-del", network, lb, "--", "lb-del", lb); err != nil {
			s.t.Errorf("remove the load balancer of SCTP: %v", err)
		}
	})
}

// associate opens associations of the VM: by it through the load balancer, by it and with it.
func (s *handingOver) associate() (out []association) {
	s.t.Helper()
	for _, a := range []struct {
		what, netns string
		to          netip.Addr
	}{
		{"SCTP through a load balancer", s.vm.Netns, sctpVIPs[0]}, {"SCTP through a load balancer, IPv6", s.vm.Netns, sctpVIPs[1]},
		{"SCTP to a pod, IPv6", s.vm.Netns, s.peer.Addrs()[1]}, {"SCTP from a pod", s.peer.Netns, s.vm.Live.Addrs()[0]},
	} {
		log := s.daemon(a.netns, "tool", "sctp", "ask", netip.AddrPortFrom(a.to, sctpPort).String(), "0")
		s.says(log, "message 1 from")
		out = append(out, association{a.what, log})
	}
	return out
}

// ended is why an association has; empty: it has not.
func (a association) ended(log []byte) string {
	_, why, _ := strings.Cut(string(log), "tool: ")
	return why
}

// tags are the verification tags of both ends by the entries of the VM's associations in a zone.
func (s *handingOver) tags(n *cluster.Node) map[[2]conntrack.Tuple][2]uint32 {
	s.t.Helper()
	out := map[[2]conntrack.Tuple][2]uint32{}
	for _, e := range s.entriesOf(s.zoneOn(n)) {
		if e.Protocol == conntrack.SCTP && e.Of(s.vm.Live.Addrs()...) {
			out[[2]conntrack.Tuple{e.Orig, e.Reply}] = e.SCTP.Tags
		}
	}
	return out
}

// goOn checks that associations do, and that the zone where the VM is now knows those tags that it knew where it was.
func (s *handingOver) goOn(associations []association, before map[[2]conntrack.Tuple][2]uint32) {
	s.t.Helper()
	for _, a := range associations {
		s.goesOn(a.log, "message ", func(log []byte) {
			if why := a.ended(log); why != "" {
				s.t.Fatalf("%s: the association has ended: %s", a.what, why)
			}
		})
	}
	now, same := s.tags(s.vm.Live.Node), 0
	for tuples, tags := range before {
		is, ok := now[tuples]
		switch {
		case ok && is == tags:
			same++
		case ok:
			s.t.Errorf("association %v has the tags %x in the VM's zone, want %x", tuples, is, tags)
		}
	}
	if same < len(associations) {
		s.t.Errorf("%d associations have their tags in the VM's zone, want %d at least: before %x, now %x", same, len(associations), before, now)
	}
}
