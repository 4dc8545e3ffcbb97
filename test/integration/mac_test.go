package integration

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// In Subnets of IPv6 alone many addresses have the bytes in common that MACs follow from: everybody gets a network all the same, no two on one switch the same MAC, nor two NICs of one VM.
func TestMACsOfIPv6(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.installNADs(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	for _, tenant := range []string{"a", "b"} {
		e.namespace(t, tenant, map[string]string{"subnet": tenant})
		e.create(t, subnet(tenant, v1alpha1.SubnetSpec{CIDRs: []string{"fd00:" + tenant + "::/64"}, NamespaceSelector: selects(tenant)}))
	}
	e.create(t, subnet("blue", v1alpha1.SubnetSpec{CIDRs: []string{"fd00:b1::/64"}, NamespaceSelector: selects("a"), SecondNetworksOnly: true}))
	e.nad(t, key("a", "blue"), onSubnet("blue"))

	var macs []string
	for _, vm := range []types.NamespacedName{key("a", "vm"), key("b", "vm")} {
		e.create(t, newPort(vm.Namespace, vm.Name, vm.Name, v1alpha1.PortSpec{}))
		macs = append(macs, e.vmPort(t, vm, v1alpha1.PortReserved).Status.MAC)
	}
	const first = "0a:67:00:00:00:02"
	if macs[0] != first || macs[1] != first {
		t.Errorf("the first VMs of two Subnets have MACs %v, want %s each", macs, first)
	}
	two := e.vmi(t, key("a", "two"), onNetworks("blue"))
	launcher := e.launcher(t, two, "two-1", "n1", nil)
	e.selects(t, launcher, "blue")
	nic := e.carries(t, launcher, "blue")
	if id := e.mayAttach(t, launcher, v1alpha1.Attach{Chassis: "n1"}); id.MAC.String() == nic.MAC.String() || fmt.Sprint(nic.IPs) != "[fd00:b1::2/64]" {
		t.Errorf("the VM's NICs are %+v and %+v, want two MACs", id, nic)
	}
	// Whoever asks for an address that ends as another's, or will, neither gets that one's frames nor keeps it from having a network.
	has := map[string]bool{}
	for _, pod := range []struct{ name, ip string }{{"now", "fd00:a::1:0:2"}, {"later", "fd00:a::1:0:4"}, {"fourth", "fd00:a::4"}} {
		p := newPod(key("a", pod.name), "n1")
		p.Annotations = map[string]string{v1alpha1.IPsAnnotation: pod.ip}
		e.create(t, p)
		id, row := e.served(t, key("a", pod.name))
		if mac := id.MAC.String(); mac == macs[0] || has[mac] || !strings.HasPrefix(row.Addresses[0], mac+" ") {
			t.Errorf("pod %s has MAC %s and row %v, want a MAC of its own", pod.name, mac, row.Addresses)
		}
		has[id.MAC.String()] = true
	}
	e.stop()
	e.start(t)
	third := newPod(key("a", "third"), "n1")
	third.Annotations = map[string]string{v1alpha1.IPsAnnotation: "fd00:a::2:0:4"}
	e.create(t, third)
	if id, _ := e.served(t, key("a", "third")); has[id.MAC.String()] {
		t.Errorf("after a restart a pod has MAC %s, which another has", id.MAC)
	}
}
