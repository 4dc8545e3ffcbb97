package check

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// healthy is a cluster of two nodes and a pod, in which all agree.
func healthy() Facts {
	ip := []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00::2")}
	const addresses = "0a:67:0a:f4:00:02 10.244.0.2 fd00::2"
	vmIP := []netip.Addr{netip.MustParseAddr("10.244.0.3")}
	const vmAddresses = "0a:67:0a:f4:00:03 10.244.0.3"
	return Facts{
		Pods: []Pod{
			{Namespace: "ns", Name: "a", UID: "1", Node: "node1", Running: true, IPs: ip, Identity: &Identity{
				PodUID: "1", IPs: ip, Addresses: addresses, Row: "pod/ns/a/default", Version: "1",
			}},
			{Namespace: "ns", Name: "launcher", UID: "3", Node: "node2", Running: true, IPs: vmIP, Identity: &Identity{
				PodUID: "3", IPs: vmIP, Addresses: vmAddresses, Row: "vm/ns/vm/default", Version: "vmi",
			}},
			{Namespace: "ns", Name: "starting", UID: "2"},
		},
		VMs:      []VM{{Port: "ns/vm", UID: "port", Row: "vm/ns/vm/default", Ready: true, Node: "node2", Addresses: vmAddresses}},
		Policies: written(Policies{}),
		Ports: []Port{
			{Name: "pod/ns/a/default", Addresses: []string{addresses}, RequestedChassis: "node1", UID: "1"},
			{Name: "vm/ns/vm/default", Addresses: []string{vmAddresses, "unknown"}, RequestedChassis: "node2", UID: "port"},
			{Name: "node/node1"}, {Name: "node/node2"}, {Name: "uplink/subnet/default", Type: "router"},
		},
		Bindings: []Binding{
			{Port: "pod/ns/a/default", Chassis: "node1", Up: true}, {Port: "node/node1", Chassis: "node1", Up: true},
			{Port: "vm/ns/vm/default", Chassis: "node2", Up: true},
			{Port: "node/node2", Chassis: "node2", Up: true}, {Port: "uplink/subnet/default", Type: "patch"}, {Port: "gateway/subnet/default", Type: "patch"},
		},
		Chassis: []string{"node1", "node2"},
		Nodes: []Node{
			{
				Name: "node1", Runs: true,
				Interfaces: []Interface{
					{Name: "gw1", IfaceID: "pod/ns/a/default", IfaceIDVer: "1", Ofport: 2}, {Name: "ovn0", IfaceID: "node/node1", Ofport: 1}, {Name: "ovn-node2-0", Ofport: 3},
				},
				Links: []Link{{Name: "eth0", Veth: true}, {Name: "eth1", Veth: true}, {Name: "ovn0"}, {Name: "gw1", Veth: true}},
			},
			{Name: "node2", Runs: true, Interfaces: []Interface{
				{Name: "ovn0", IfaceID: "node/node2", Ofport: 1}, {Name: "gw2", IfaceID: "vm/ns/vm/default", IfaceIDVer: "vmi", Ofport: 2},
			}, Links: []Link{{Name: "ovn0"}, {Name: "gw2", Veth: true}}},
		},
	}
}

func TestAgreementIsNoDifference(t *testing.T) {
	if diff := cmp.Diff([]string(nil), Compare(healthy())); diff != "" {
		t.Error(diff)
	}
	down := healthy()
	// A node that is down: its pods are still said to run, its chassis is still there.
	down.Nodes[0] = Node{Name: "node1"}
	down.Bindings[0].Up = false
	if diff := cmp.Diff([]string(nil), Compare(down)); diff != "" {
		t.Error("with a node down:", diff)
	}
}

// A VM has left a node that is down since: nobody can say that its launcher there has ended.
func TestLauncherOnADeadNode(t *testing.T) {
	left := func() Facts {
		f := healthy()
		old, id := f.Pods[1], *f.Pods[1].Identity
		id.PodUID = "4"
		old.Name, old.UID, old.Node, old.Identity = "old", id.PodUID, "node1", &id
		f.Pods = append(f.Pods, old)
		return f
	}
	for name, tt := range map[string]struct {
		change func(*Facts)
		want   []string
	}{
		"the VM has moved": {func(f *Facts) { f.Nodes[0] = Node{Name: "node1"} }, nil},
		"the VM has failed, and is nowhere": {func(f *Facts) {
			f.Nodes[0], f.VMs[0].Node = Node{Name: "node1"}, ""
			f.Pods[1].Finished, f.Pods[1].Running, f.Ports[1].RequestedChassis = true, false, string(ident.NoChassis)
		}, nil},
		"it is nowhere, and its row asks for the dead node": {func(f *Facts) {
			f.Nodes[0], f.VMs[0].Node = Node{Name: "node1"}, ""
			f.Pods[1].Finished, f.Pods[1].Running, f.Ports[1].RequestedChassis = true, false, "node1"
		}, []string{`requests chassis "node1", its VM has no launcher`}},
		"the VM is still there, and its row asks for another node": {func(f *Facts) {
			f.Nodes[0], f.VMs[0].Node, f.Pods = Node{Name: "node1"}, "node1", append(f.Pods[:1:1], f.Pods[2:]...)
		}, []string{`requests chassis "node2", the pod is on node1`, "OVS: interface gw2 on node2 is vm/ns/vm/default, of which no launcher"}},
		"the node runs": {func(*Facts) {}, []string{`requests chassis "node2", the pod is on node1`, "OVS: 0 interfaces on node1", `bound to chassis "node2", want node1`}},
	} {
		t.Run(name, func(t *testing.T) {
			f := left()
			tt.change(&f)
			expect(t, Compare(f), tt.want)
		})
	}
}

// expect looks for a text in each difference.
func expect(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("found %q, want %d differences", got, len(want))
	}
	for i, w := range want {
		if !strings.Contains(got[i], w) {
			t.Errorf("difference %d is %q, want %q in it", i, got[i], w)
		}
	}
}

func TestEachDifferenceIsFound(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Facts)
		want   []string
	}{
		"no identity":      {func(f *Facts) { f.Pods[0].Identity = nil }, []string{"API: pod ns/a runs and has no identity"}},
		"bad identity":     {func(f *Facts) { f.Pods[0].IdentityError = "annotation: no JSON" }, []string{"API: pod ns/a: annotation: no JSON"}},
		"other's identity": {func(f *Facts) { f.Pods[0].Identity.PodUID = "9" }, []string{"has UID 1, its identity is for 9"}},
		"other address":    {func(f *Facts) { f.Pods[0].IPs = f.Pods[0].IPs[:1] }, []string{"addresses [10.244.0.2] in its status"}},
		"no port": {func(f *Facts) { f.Ports = f.Ports[1:] }, []string{
			"NB: pod ns/a has no Logical_Switch_Port pod/ns/a/default", "SB: Port_Binding pod/ns/a/default has no Logical_Switch_Port",
		}},
		"wrong addresses":   {func(f *Facts) { f.Ports[0].Addresses = []string{"unknown"} }, []string{`has addresses ["unknown"]`}},
		"wrong chassis":     {func(f *Facts) { f.Ports[0].RequestedChassis = "" }, []string{`requests chassis "", the pod is on node1`}},
		"port of old pod":   {func(f *Facts) { f.Ports[0].UID = "0" }, []string{`is for UID "0", the pod's is 1`}},
		"no binding":        {func(f *Facts) { f.Bindings = f.Bindings[1:] }, []string{"SB: port pod/ns/a/default has no Port_Binding"}},
		"claimed elsewhere": {func(f *Facts) { f.Bindings[0].Chassis = "node2" }, []string{`bound to chassis "node2", want node1`}},
		"not up":            {func(f *Facts) { f.Bindings[0].Up = false }, []string{"SB: port pod/ns/a/default is not up"}},
		"no chassis":        {func(f *Facts) { f.Chassis = f.Chassis[1:] }, []string{"SB: node node1 has no Chassis"}},
		"stray chassis":     {func(f *Facts) { f.Chassis = append(f.Chassis, "x") }, []string{"SB: Chassis x is no node"}},
		"no gateway":        {func(f *Facts) { f.Nodes[1].Interfaces = f.Nodes[1].Interfaces[1:] }, []string{"OVS: 0 interfaces on node2 have iface-id node/node2"}},
		"no interface": {func(f *Facts) { f.Nodes[0].Interfaces = f.Nodes[0].Interfaces[1:] }, []string{
			"OVS: 0 interfaces on node1 have iface-id pod/ns/a/default", "kernel: veth gw1 on node1 is not plugged",
		}},
		"interface of old pod": {func(f *Facts) { f.Nodes[0].Interfaces[0].IfaceIDVer = "0" }, []string{`is for UID "0" of pod/ns/a/default, want "1"`}},
		"broken interface":     {func(f *Facts) { f.Nodes[0].Interfaces[0].Ofport = -1 }, []string{"OVS: interface gw1 on node1 (pod/ns/a/default) does not work: ofport -1"}},
		"no link":              {func(f *Facts) { f.Nodes[0].Links = f.Nodes[0].Links[:3] }, []string{"kernel: gw1 on node1, the interface of pod/ns/a/default, does not exist"}},
		"forged iface-id": {func(f *Facts) {
			f.Nodes[1].Interfaces = append(f.Nodes[1].Interfaces, Interface{Name: "evil", IfaceID: "pod/ns/a/default", Ofport: 7})
			f.Nodes[1].Links = append(f.Nodes[1].Links, Link{Name: "evil"})
		}, []string{`OVS: interface evil on node2 is for pod ns/a, which is on "node1"`}},
		"VM without row": {func(f *Facts) { f.Ports = append(f.Ports[:1:1], f.Ports[2:]...) }, []string{
			"NB: Port ns/vm has no Logical_Switch_Port", "NB: pod ns/launcher has no Logical_Switch_Port vm/ns/vm/default", "SB: Port_Binding vm/ns/vm/default has no",
		}},
		"row without Port":  {func(f *Facts) { f.VMs = nil }, []string{"vm/ns/vm/default is for a VM's interface that has no Port"}},
		"row of other Port": {func(f *Facts) { f.VMs[0].UID = "other" }, []string{`is for UID "port", Port ns/vm has other`}},
		"options left behind": {func(f *Facts) { f.Ports[1].RequestedChassis, f.Ports[1].ActivationStrategy = "node2,node1", "rarp" }, []string{
			"has activation-strategy", `requests chassis "node2,node1", the pod is on node2`,
		}},
		"VM stopped": {func(f *Facts) { f.Pods[1].Running, f.Pods[1].Finished = false, true }, []string{`its VM has no launcher: want godwit-none`}},
		"VM's port left behind": {func(f *Facts) {
			f.Pods[1].Node, f.Ports[1].RequestedChassis, f.Bindings[2].Chassis = "node1", "node1", "node1"
		}, []string{
			"OVS: 0 interfaces on node1 have iface-id vm/ns/vm/default", "OVS: interface gw2 on node2 is vm/ns/vm/default, of which no launcher",
		}},
		"shared address":                {func(f *Facts) { same := *f.Pods[0].Identity; same.Row, f.Pods[2].Identity = "", &same }, []string{"both have address 10.244.0.2", "both have address fd00::2"}},
		"second network without a port": {func(f *Facts) { f.Pods[0].Others = []Identity{{Row: "pod/ns/a/net1"}} }, []string{"NB: pod ns/a has no Logical_Switch_Port pod/ns/a/net1"}},
		"second network left behind": {func(f *Facts) { f.Ports = append(f.Ports, Port{Name: "pod/ns/a/net1", UID: "1"}) }, []string{
			"NB: Logical_Switch_Port pod/ns/a/net1 is for an interface that the pod's identity does not have",
		}},
		"pod is gone": {func(f *Facts) { f.Pods = f.Pods[1:] }, []string{
			"NB: Logical_Switch_Port pod/ns/a/default is for a pod that does not exist", "OVS: interface gw1 on node1 is for pod ns/a, which does not exist",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			tt.change(&f)
			expect(t, Compare(f), tt.want)
		})
	}
}
