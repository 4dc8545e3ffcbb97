package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// midway holds what the rows say of packets from the middle of a connection, in each direction, against what they say of its first one, which the specification has
// judged. It returns what is wrong.
func (w *world) midway(e *evaluator, first packet) string {
	for d, port := range map[nbdb.ACLDirection]ident.PortName{nbdb.ACLDirectionFromLport: first.inport, nbdb.ACLDirectionToLport: first.outport} {
		if port == "" {
			continue
		}
		permitted, _ := e.direction(d, &first)
		tcp, moving := first.proto == "tcp", slices.Contains(w.moving, port)
		for _, c := range []struct {
			what  string
			flags int
			ct    tracked
			want  bool
		}{
			{"unknown, from the middle", flagACK, tracked{new: true}, permitted || tcp && moving},
			{"known, without a label", flagACK, tracked{est: true}, permitted},
			{"known, with another label", flagACK, tracked{est: true, label: 1}, permitted},
			{"handed over", flagACK, tracked{est: true, label: HandoverLabel}, permitted || tcp},
			{"a SYN on a connection that was handed over", flagSYN, tracked{est: true, label: HandoverLabel}, permitted},
			{"a SYN with a label that nothing knows", flagSYN, tracked{new: true, label: HandoverLabel}, permitted},
		} {
			k := first
			k.ct = c.ct
			if tcp {
				k.flags = c.flags
			}
			if got, why := e.direction(d, &k); got != c.want {
				return fmt.Sprintf("%s: %s is admitted: %v (%s)", d, c.what, got, why)
			}
		}
	}
	return ""
}

// zone is connection tracking for one port on one chassis, as OVN 23.03 uses it (northd/northd.c: build_acl_hints, build_acls, consider_acl, build_stateful).
type zone map[[2]netip.AddrPort]*connection

type connection struct {
	label   int
	blocked bool
}

// pass lets a packet through a port's ACLs in one direction.
func (z zone) pass(rows Rows, d nbdb.ACLDirection, k packet) error {
	e, err := newEvaluator(rows)
	if err != nil {
		return err
	}
	src, dst := netip.AddrPortFrom(k.src, uint16(k.srcPort)), netip.AddrPortFrom(k.dst, uint16(k.dstPort))
	if c := z[[2]netip.AddrPort{dst, src}]; c != nil { // a reply passes unless the connection was cut off, whatever the ACLs say
		if c.blocked {
			return fmt.Errorf("%v → %v: the connection was cut off", src, dst)
		}
		return nil
	}
	key := [2]netip.AddrPort{src, dst}
	c := z[key]
	if c == nil {
		k.ct = tracked{new: true}
	} else {
		k.ct = tracked{est: true, label: c.label}
	}
	var found *nbdb.ACL
	for _, a := range e.acls[d] {
		if a.match(&e.scope, &k) {
			found = a.ACL
			break
		}
	}
	if found != nil && found.Action == nbdb.ACLActionDrop {
		if c != nil {
			c.blocked = true
		}
		return fmt.Errorf("%v → %v: %s", src, dst, found.Match)
	}
	if c == nil {
		c = &connection{}
		z[key] = c
	}
	c.blocked = false
	if found != nil && found.Label != 0 {
		c.label = found.Label
	}
	return nil
}

var (
	vmAddr, peerAddr = netip.MustParseAddr("10.244.0.9"), netip.MustParseAddr("10.244.1.9")
	vmPort           = ident.VMPort("a", "vm", ident.DefaultNetwork)
)

// isolatedVM is isolated in both directions; it may connect to port 80 of the peer, and be connected to from there at port 443.
func isolatedVM(t *testing.T) *Index {
	t.Helper()
	return Fill(Config{Join: join}, Snapshot{
		Namespaces: map[string]map[string]string{"a": {}},
		Policies: []*networkingv1.NetworkPolicy{policyOf(t, `
metadata: {namespace: a, name: p}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.244.1.9/32}}], ports: [{port: 443}]}]
  egress: [{to: [{ipBlock: {cidr: 10.244.1.9/32}}], ports: [{port: 80}]}]`)},
		Pods: []Pod{{Port: vmPort, Namespace: "a", IPs: []netip.Addr{vmAddr}}},
	})
}

// The VM's and its peer's segments. The VM is the client at port 40000 or the server at port 443.
func fromVM(port, peerPort int) packet {
	return packet{inport: vmPort, src: vmAddr, dst: peerAddr, proto: "tcp", flags: flagACK, srcPort: port, dstPort: peerPort}
}

func toVM(port, peerPort int) packet {
	return packet{outport: vmPort, src: peerAddr, dst: vmAddr, proto: "tcp", flags: flagACK, srcPort: peerPort, dstPort: port}
}

func (k packet) withSYN() packet {
	k.flags = flagSYN
	return k
}

func (z zone) try(rows Rows, k packet) error {
	if k.inport != "" {
		return z.pass(rows, nbdb.ACLDirectionFromLport, k)
	}
	return z.pass(rows, nbdb.ACLDirectionToLport, k)
}

// handoverCase is a connection, the first segment of it that the target sees, and those that follow.
type handoverCase struct {
	syn           packet
	first, second packet
	// needs: without the handover it dies.
	needs bool
}

func handoverCases() map[string]handoverCase {
	return map[string]handoverCase{
		"download by the VM":                {fromVM(40000, 80), toVM(40000, 80), fromVM(40000, 80), true},
		"upload by the VM":                  {fromVM(40000, 80), fromVM(40000, 80), toVM(40000, 80), false},
		"upload by a client":                {toVM(443, 50000), toVM(443, 50000), fromVM(443, 50000), false},
		"download by a client":              {toVM(443, 50000), fromVM(443, 50000), toVM(443, 50000), true},
		"a client that is silent meanwhile": {toVM(443, 50000), fromVM(443, 50000), fromVM(443, 50000), true},
	}
}

// TestPolicyHandover moves an isolated VM with a connection, and watches it past the end of the grace: once with the handover, and once without, where those connections
// die whose first segment on the target goes against the policy.
func TestPolicyHandover(t *testing.T) {
	for name, c := range handoverCases() {
		for _, handover := range []string{"handover", "none"} {
			t.Run(name+"/"+handover, func(t *testing.T) {
				x := isolatedVM(t)
				source, target := zone{}, zone{}
				if err := source.try(x.Rows(), c.syn.withSYN()); err != nil {
					t.Fatal("it cannot even begin:", err)
				}
				if handover == "handover" {
					x.StartMoving(vmPort)
				}
				err := errorsOf(target, x.Rows(), c.first, c.second)
				if want := c.needs && handover == "none"; (err != nil) != want {
					t.Fatalf("on the target: %v, want it to die: %v", err, want)
				}
				if err != nil {
					return
				}
				for key, k := range target {
					if labelled := k.label == HandoverLabel; labelled != c.needs {
						t.Errorf("%v has a label: %v; what the policy permits by itself must not, or it outlives the policy", key, labelled)
					}
				}
				x.StopMoving(vmPort)
				if err := errorsOf(target, x.Rows(), c.first, c.second, c.first); err != nil {
					t.Errorf("after the grace: %v", err)
				}
				if err := errorsOf(zone{}, x.Rows(), c.first); (err != nil) != c.needs {
					t.Errorf("a connection that nothing has handed over, after the grace: %v", err)
				}
			})
		}
	}
}

func errorsOf(z zone, rows Rows, packets ...packet) error {
	for _, k := range packets {
		if err := z.try(rows, k); err != nil {
			return err
		}
	}
	return nil
}

// What is new is judged by the policies while the VM moves, and after; also where a forged segment has got itself a label before.
func TestPolicyHandoverAdmitsNothingNew(t *testing.T) {
	x := isolatedVM(t)
	x.StartMoving(vmPort)
	z := zone{}
	for _, k := range []packet{toVM(22, 50000), fromVM(40000, 22), toVM(40000, 80)} {
		if err := z.try(x.Rows(), k.withSYN()); err == nil {
			t.Errorf("a new connection %v → %v:%d was admitted", k.src, k.dst, k.dstPort)
		}
		udp := k
		udp.proto = "udp"
		if err := z.try(x.Rows(), udp); err == nil {
			t.Errorf("a datagram %v → %v:%d was admitted", k.src, k.dst, k.dstPort)
		}
		if err := z.try(x.Rows(), k); err != nil {
			t.Errorf("a segment from the middle of a connection: %v", err)
		}
		if err := z.try(x.Rows(), k.withSYN()); err == nil {
			t.Errorf("after a forged segment, a new connection %v → %v:%d was admitted", k.src, k.dst, k.dstPort)
		}
	}
	x.StopMoving(vmPort)
	if err := z.try(x.Rows(), toVM(22, 50000).withSYN()); err == nil {
		t.Error("after the grace, the label that a forged segment got opened a connection")
	}
	if err := z.try(x.Rows(), toVM(23, 50000)); err == nil {
		t.Error("after the grace, a segment that nothing knows was admitted")
	}
}

// Who moves is a matter of members: of a group that is there before, for ports that something isolates.
func TestPolicyHandoverMembers(t *testing.T) {
	x := isolatedVM(t)
	x.Take()
	x.StartMoving(vmPort)
	ingress, egress := handoverGroup(IngressGroup), handoverGroup(EgressGroup)
	want := Changes{Groups: []GroupChange{{Name: egress, Add: []ident.PortName{vmPort}}, {Name: ingress, Add: []ident.PortName{vmPort}}}}
	if d := cmp.Diff(want, x.Take()); d != "" {
		t.Errorf("begins to move (-want +got)\n%s", d)
	}
	x.SetPod(Pod{Port: vmPort, Namespace: "a", Labels: map[string]string{"moved": "yes"}, IPs: []netip.Addr{vmAddr}})
	if c := x.Take(); !c.Empty() {
		t.Errorf("labels that select nothing else: %+v", c)
	}
	x.DeletePolicy(Key{"a", "p"})
	x.Take()
	if got := x.GroupsOf(vmPort); got != nil {
		t.Errorf("nothing isolates it, and it is in %v", got)
	}
	x.StopMoving(vmPort)
	if c := x.Take(); !c.Empty() {
		t.Errorf("stops, and is in no group: %+v", c)
	}
	if x.Moving(vmPort) {
		t.Error("it still moves")
	}
}
