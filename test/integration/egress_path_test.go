package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// path is a way that packets take from the router on: what a pod may send from is for its port to say.
type path struct {
	// from is a pod, of a Subnet; src is the source that it writes, its own if that is empty.
	from   types.NamespacedName
	subnet string
	src    string
	dst    string
	// want is the port where the packets come out, or the beginning of its name; empty if they do not.
	want string
}

// goes waits until OVN's flows send packets this way.
func (e *env) goes(t *testing.T, p path) {
	t.Helper()
	_, lsp := e.served(t, p.from)
	fields := strings.Fields(lsp.Addresses[0])
	dst, ip := netip.MustParseAddr(p.dst), "ip4"
	if dst.Is6() {
		ip = "ip6"
	}
	for _, own := range fields[1:] {
		if p.src == "" && netip.MustParseAddr(own).Is4() == dst.Is4() {
			p.src = own
		}
	}
	ls := ident.SubnetSwitch(p.subnet)
	packet := fmt.Sprintf("inport == %q && eth.src == %s && eth.dst == %s && %[4]s.src == %[5]s && %[4]s.dst == %[6]s && ip.ttl == 64 && udp.src == 5000 && udp.dst == 5001",
		ident.RouterPort(ls), fields[0], ident.GatewayMAC(ls), ip, p.src, p.dst)
	eventually(t, func() error {
		got, err := e.central.Trace(t, string(ident.Router(ident.DefaultNetwork)), packet)
		if err != nil {
			return err
		}
		if _, out, ok := strings.Cut(got, "output(\""); ok != (p.want != "") || ok && !strings.HasPrefix(out, p.want) {
			return fmt.Errorf("what pod %s sends from %s to %s comes out by\n%s, want %q", p.from, p.src, p.dst, got, p.want)
		}
		return nil
	})
}

// By OVN's own reading of the rows: pods that do not leave through their own nodes reach nodes and API servers all the same, and do not leave by the anchor of another's address.
func TestEgressPaths(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	for i, n := range []string{"n1", "n2"} {
		e.node(t, n)
		var node corev1.Node
		if err := e.api.Get(t.Context(), types.NamespacedName{Name: n}, &node); err != nil {
			t.Fatal(err)
		}
		before := node.DeepCopy()
		for _, text := range []string{"192.0.2.%d", "2001:db8::%d"} {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: fmt.Sprintf(text, 11+i)})
		}
		if err := e.api.Status().Patch(t.Context(), &node, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	e.defaultSubnet(t)
	shut := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "shut"}, Spec: v1alpha1.SubnetSpec{
		CIDRs: []string{"10.20.0.0/16", "fd00:20::/64"}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "shut"}}, Egress: &v1alpha1.Egress{Mode: v1alpha1.EgressNone},
	}}
	if err := e.api.Create(t.Context(), shut); err != nil {
		t.Fatal(err)
	}
	e.namespace(t, "open", nil)
	e.namespace(t, "shut", map[string]string{"team": "shut"})
	open, inside := key("open", "pod"), key("shut", "pod")
	e.pod(t, open, "n1")
	e.pod(t, inside, "n1")
	for _, host := range []string{"192.0.2.12", "2001:db8::12"} {
		e.goes(t, path{inside, "shut", "", host, "node/"})
		e.goes(t, path{open, controller.DefaultSubnet, "", host, "node/"})
	}
	for n, vm := range map[string]string{"n1": "10.244.0.201", "n2": "10.244.0.202"} {
		e.joinOf(t, n)
		eventually(t, func() error {
			return e.anchored(t, n, vm)
		})
		e.goes(t, path{open, controller.DefaultSubnet, vm, "198.51.100.1", "node/" + n})
		e.goes(t, path{open, controller.DefaultSubnet, vm, "192.0.2.12", "node/" + n})
		e.goes(t, path{inside, "shut", vm, "198.51.100.1", ""})
	}
	for _, outside := range []string{"198.51.100.1", "2001:db8:ff::1"} {
		e.goes(t, path{inside, "shut", "", outside, ""})
		e.goes(t, path{open, controller.DefaultSubnet, "", outside, "node/"})
	}
	e.goes(t, path{inside, "shut", "2001:db8:77::1", "2001:db8:ff::1", ""})
	four := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "four"}, Spec: v1alpha1.SubnetSpec{
		CIDRs: []string{"10.21.0.0/16"}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "four"}}, Egress: &v1alpha1.Egress{Mode: v1alpha1.EgressNone},
	}}
	if err := e.api.Create(t.Context(), four); err != nil {
		t.Fatal(err)
	}
	e.namespace(t, "four", map[string]string{"team": "four"})
	e.pod(t, key("four", "pod"), "n1")
	e.goes(t, path{key("four", "pod"), "four", "", "192.0.2.11", "node/"})
	e.goes(t, path{key("four", "pod"), "four", "2001:db8:77::1", "2001:db8:ff::1", ""})
	e.egress(t, "shut", nil)
	e.goes(t, path{inside, "shut", "", "198.51.100.1", "node/"})
	e.goes(t, path{inside, "shut", "10.244.0.202", "198.51.100.1", "node/n2"})
	_, lsp := e.served(t, inside)
	for i, ip := range strings.Fields(lsp.Addresses[0])[1:] { // who says that it is the pod itself, by a Service, is nobody
		e.goes(t, path{open, controller.DefaultSubnet, "", ip, lsp.Name})
		e.goes(t, path{open, controller.DefaultSubnet, ident.HairpinSources()[i].String(), ip, ""})
	}
}

// anchored puts an address into the set of a node, as a VM's would be.
func (e *env) anchored(t *testing.T, node, address string) error {
	t.Helper()
	set := ident.AnchorSet(node, "ip4")
	e.central.Transact(t, map[string]any{
		"op": "update", "table": nbdb.AddressSetTable, "where": []any{[]any{"name", "==", set}}, "row": map[string]any{"addresses": address},
	})
	if got := e.members(t, set); len(got) != 1 || got[0] != address {
		return fmt.Errorf("the set of node %s has %v, want %s", node, got, address)
	}
	return nil
}
