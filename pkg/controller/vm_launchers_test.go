package controller

import (
	"context"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// writes is a cache, and counts what is written.
type writes struct {
	apiOf
	n int
}

func (w *writes) Patch(context.Context, client.Object, client.Patch, ...client.PatchOption) error {
	w.n++
	return nil
}

// A launcher is told nothing as long as the Port has another MAC than the VM's definition asks for: its link would have that one for its life.
func TestLauncherWaitsForTheMAC(t *testing.T) {
	const before, asked = "0a:67:0a:01:00:07", "02:00:00:00:00:0A"
	api := &writes{apiOf: apiOf{subnet: v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{"10.1.0.0/24"}, MTU: 1400}}}}
	r := &vmReconciler{api: api, alloc: newTestAllocations(t, &api.apiOf)}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "l", UID: "l"}}
	// runs is a launcher that is in the network with the MAC of before, of an instance.
	runs := func(instance string) []*corev1.Pod {
		id := v1alpha1.Identity{
			PodUID: "r", Subnet: "a", MAC: v1alpha1.MAC{0x0a, 0x67, 0x0a, 1, 0, 7}, MTU: 1400, VMI: &v1alpha1.Instance{Name: "vm", UID: instance},
			IPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.7/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1")},
		}
		id.NICs = []v1alpha1.NIC{v1alpha1.NICOf(ident.LauncherInterface("blue"), "blue", id)}
		return []*corev1.Pod{pod, {ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r", UID: "r", Annotations: map[string]string{v1alpha1.IdentityAnnotation: id.Text()}}}}
	}
	alone := []*corev1.Pod{pod}
	for _, c := range []struct {
		why, mac, status string
		pods             []*corev1.Pod
		told             int
	}{
		{"the Port's reconciler has not seen the instance", asked, before, alone, 0},
		{"it has", asked, "02:00:00:00:00:0a", alone, 1},
		{"no MAC is asked for", "", before, alone, 1},
		{"what is asked for is none", "nonsense", before, alone, 1},
		{"it runs with the other, and is to move", asked, before, runs("v"), 1},
		{"an earlier instance had the other", asked, before, runs("w"), 0},
	} {
		vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: "v"}}
		o := observed{vmi: vmi, pods: c.pods, ports: map[string]*v1alpha1.Port{}}
		d := migration.Decision{Attach: []migration.Attach{{Pod: "l", PodUID: "l", Chassis: "n1"}}}
		for _, network := range []string{podNetwork, "blue"} {
			port := portWith(network, 1, v1alpha1.PortStatus{Subnet: "a", MAC: c.status, IPs: []string{"10.1.0.7"}})
			port.Spec.Target = v1alpha1.PortTarget{Name: "vm", Network: network}
			o.ports[network] = &port
			vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, kubevirtv1.Interface{Name: network, MacAddress: c.mac})
		}
		vmi.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork(), {Name: "blue", NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: "blue"}}}}
		api.n = 0
		if err := r.identify(t.Context(), o, migration.Snapshot{Launchers: []migration.Launcher{{Name: "l", UID: "l"}}}, d); err != nil || api.n != c.told {
			t.Errorf("%s: the launcher was told %d times (%v), want %d", c.why, api.n, err, c.told)
		}
		nics, err := r.launcherNICs(t.Context(), o, pod, map[string]v1alpha1.Activation{"blue": v1alpha1.ActivationNone})
		if err != nil || len(nics) != c.told {
			t.Errorf("%s: the launcher has %+v on second networks (%v), want %d", c.why, nics, err, c.told)
		}
	}
}
