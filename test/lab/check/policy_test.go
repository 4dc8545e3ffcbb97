package check

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// written is p with the rows that a controller writes for it. A port's UUID is its name.
func written(p Policies) Policies {
	p.Snapshot.Moving = p.moving()
	rows := policy.Compile(p.Config, p.Snapshot)
	there := map[ident.PortName]bool{}
	for i := range p.Ports {
		p.Ports[i].RowUUID = string(p.Ports[i].Name)
		there[p.Ports[i].Name] = true
	}
	groups := map[string]*nbdb.PortGroup{}
	for _, g := range rows.Groups {
		for _, port := range g.Ports {
			if there[port] {
				g.Row.Ports = append(g.Row.Ports, string(port))
			}
		}
		groups[g.Row.Name] = g.Row
		p.Groups = append(p.Groups, g.Row)
	}
	for i, a := range rows.ACLs {
		a.Row.UUID = fmt.Sprintf("acl-%d", i)
		groups[a.Group].ACLs = append(groups[a.Group].ACLs, a.Row.UUID)
		p.ACLs = append(p.ACLs, a.Row)
	}
	p.Sets = rows.Sets
	return p
}

var moved = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// isolated is a cluster of a pod, a VM that has moved half a minute ago, and a pod that has no row yet, with a policy that lets one port in.
func isolated() Policies {
	web := intstr.FromInt32(80)
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: app("web")}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: app("client")}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &web}},
			}},
		},
	}
	pod := func(port ident.PortName, name string, ip string) policy.Pod {
		return policy.Pod{Port: port, Namespace: "ns", Labels: app(name), IPs: []netip.Addr{netip.MustParseAddr(ip)}, Ports: []policy.PodPort{{Protocol: corev1.ProtocolTCP}}}
	}
	return Policies{
		Snapshot: policy.Snapshot{
			Policies: []*networkingv1.NetworkPolicy{np}, Namespaces: map[string]map[string]string{"ns": {}},
			Pods:  []policy.Pod{pod("pod/ns/a/default", "web", "10.0.0.1"), pod("vm/ns/vm/default", "web", "10.0.0.2"), pod("pod/ns/c/default", "client", "10.0.0.3"), pod("pod/ns/new/default", "web", "10.0.0.4")},
			Hosts: []policy.Host{{Node: "node1", Own: []netip.Addr{netip.MustParseAddr("100.64.0.2")}}},
		},
		Ports: []Port{
			{Name: "pod/ns/a/default", RequestedChassis: "node1"}, {Name: "vm/ns/vm/default", RequestedChassis: "node2", Moved: moved.Format(time.RFC3339Nano)},
			{Name: "pod/ns/c/default", RequestedChassis: "node1"}, {Name: "node/node1"},
		},
		Grace: time.Minute, Now: moved.Add(30 * time.Second),
	}
}

func TestPoliciesAgree(t *testing.T) {
	p := written(isolated())
	expect(t, ComparePolicies(p), nil)
	// What is somebody else's is nobody's business.
	p.Groups = append(p.Groups, &nbdb.PortGroup{Name: "mine", Ports: []string{"pod/ns/a/default"}, ACLs: []string{"x"}})
	p.Sets = append(p.Sets, &nbdb.AddressSet{Name: "mine", Addresses: []string{"10.0.0.9"}})
	p.ACLs = append(p.ACLs, &nbdb.ACL{UUID: "x"})
	expect(t, ComparePolicies(p), nil)
}

// Each case changes rows as somebody might by hand, or a controller by mistake.
func TestEachDifferenceOfPoliciesIsFound(t *testing.T) {
	group := func(p Policies, prefix string) *nbdb.PortGroup {
		return p.Groups[slices.IndexFunc(p.Groups, func(g *nbdb.PortGroup) bool { return strings.HasPrefix(g.Name, prefix) })]
	}
	rule := func(p Policies) *nbdb.ACL {
		return p.ACLs[slices.IndexFunc(p.ACLs, func(a *nbdb.ACL) bool { return a.Name != nil && *a.Name == "np/ns/web/ingress/0" })]
	}
	const handover = "godwit_np_ingress_handover"
	for name, tt := range map[string]struct {
		change func(*Policies)
		want   []string
	}{
		"address missing":  {func(p *Policies) { p.Sets[0].Addresses = nil }, []string{"lacks [10.0.0.3]"}},
		"address too many": {func(p *Policies) { p.Sets[0].Addresses = append(p.Sets[0].Addresses, "10.0.0.9") }, []string{"has [10.0.0.9], which does not belong in it"}},
		"address left":     {func(p *Policies) { p.Sets[0].Addresses = []string{"10.0.0.1"} }, []string{"has [10.0.0.1]", "lacks [10.0.0.3]"}},
		"set missing":      {func(p *Policies) { p.Sets = p.Sets[1:] }, []string{"there is no Address_Set godwit_p_"}},
		"set left behind": {func(p *Policies) {
			p.Sets = append(p.Sets, &nbdb.AddressSet{Name: "godwit_p_old_4", ExternalIDs: p.Sets[0].ExternalIDs})
		}, []string{"Address_Set godwit_p_old_4 follows from no NetworkPolicy"}},
		"pod not isolated":  {func(p *Policies) { g := group(*p, "godwit_np_ingress"); g.Ports = g.Ports[1:] }, []string{"Port_Group godwit_np_ingress (isolated pods, ingress) lacks [pod/ns/a/default]"}},
		"pod not selected":  {func(p *Policies) { group(*p, "godwit_s_").Ports = []string{"vm/ns/vm/default"} }, []string{"lacks [pod/ns/a/default]"}},
		"another's port":    {func(p *Policies) { g := group(*p, "godwit_s_"); g.Ports = append(g.Ports, "pod/ns/c/default") }, []string{"has [pod/ns/c/default], which does not belong in it"}},
		"port that is gone": {func(p *Policies) { g := group(*p, "godwit_s_"); g.Ports = append(g.Ports, "none") }, []string{"has [a port that does not exist]"}},
		"group left behind": {func(p *Policies) {
			p.Groups = append(p.Groups, &nbdb.PortGroup{Name: "godwit_s_old", ExternalIDs: p.Groups[0].ExternalIDs})
		}, []string{"Port_Group godwit_s_old follows from no NetworkPolicy"}},
		"row that has lost its owner": {func(p *Policies) { p.Sets[0].ExternalIDs = nil }, []string{"there is no Address_Set godwit_p_"}},
		"rule missing":                {func(p *Policies) { group(*p, "godwit_s_").ACLs = nil }, []string{"has no ACL np/ns/web/ingress/0 (to-lport, priority 10000", "ip6.src"}},
		"rule changed":                {func(p *Policies) { rule(*p).Action = nbdb.ACLActionDrop }, []string{"has ACL np/ns/web/ingress/0"}},
		"rule widened":                {func(p *Policies) { rule(*p).Match = "ip" }, []string{`"ip", allow-related), want np/ns/web/ingress/0`}},
		"rule twice": {func(p *Policies) {
			again := *rule(*p)
			again.UUID = "again"
			p.ACLs = append(p.ACLs, &again)
			g := group(*p, "godwit_s_")
			g.ACLs = append(g.ACLs, "again")
		}, []string{"has two ACLs np/ns/web/ingress/0"}},
		"rule of a policy that is gone": {func(p *Policies) {
			p.Snapshot.Policies[0] = p.Snapshot.Policies[0].DeepCopy()
			p.Snapshot.Policies[0].Spec.Ingress = nil
		}, []string{"_4 follows from no NetworkPolicy", "_6 follows from no NetworkPolicy", "allow-related), which follows from no NetworkPolicy", "ip6.src"}},
		"handover not begun":    {func(p *Policies) { group(*p, handover).Ports = nil }, []string{handover + " (isolated pods that take connections along, ingress) lacks [vm/ns/vm/default]"}},
		"handover not ended":    {func(p *Policies) { p.Now = moved.Add(time.Minute) }, []string{handover + " (isolated pods that take connections along, ingress) has [vm/ns/vm/default]"}},
		"handover switched off": {func(p *Policies) { p.Grace = 0 }, []string{handover + " (isolated pods that take connections along, ingress) has [vm/ns/vm/default]"}},
		"handover of a pair": {func(p *Policies) {
			p.Ports[1].RequestedChassis, p.Ports[1].Moved = "node2,node1", ""
			group(*p, handover).Ports = nil
		}, []string{handover}},
	} {
		t.Run(name, func(t *testing.T) {
			p := written(isolated())
			tt.change(&p)
			expect(t, ComparePolicies(p), tt.want)
		})
	}
}
