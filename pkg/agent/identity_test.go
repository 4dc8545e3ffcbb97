package agent

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// An interface on a second network is found by its name alone, and by that which KubeVirt gives it where it is a VM's.
func TestLookNIC(t *testing.T) {
	ref := wire.Pod{Namespace: "ns", Name: "p"}
	first := v1alpha1.Identity{
		PodUID: "pod", Subnet: "default", MTU: 1400, MAC: v1alpha1.MAC{2, 0, 0, 0, 0, 1}, IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/16")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	}
	second := v1alpha1.Identity{
		Subnet: "blue", MTU: 1300, MAC: v1alpha1.MAC{2, 0, 0, 0, 0, 2}, IPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/16")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1")},
	}
	blue, red := ident.LauncherInterface("blue"), ident.LauncherInterface("red")
	for name, c := range map[string]struct {
		nic, asked string
		vm         bool
		port       ident.PortName // empty: it is waited for
		subnet     string
	}{
		"a pod's first":          {"net1", "eth0", false, "pod/ns/p/default", "default"},
		"a pod's second":         {"net1", "net1", false, "pod/ns/p/net1", "blue"},
		"none of the name":       {"net1", "net2", false, "", ""},
		"a VM's first":           {blue, "eth0", true, "vm/ns/vm/default", "default"},
		"a VM's second":          {blue, blue, true, "vm/ns/vm/blue", "blue"},
		"a VM's of another name": {"net1", "net1", true, "", ""},
		"another network's name": {red, red, true, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			id, network := first, "ns/blue"
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "pod"}}
			if c.vm {
				network = "blue"
				launch(pod, "vm", "vmi")
				id.VMI, id.Attach = &v1alpha1.Instance{Name: "vm", UID: "vmi"}, &v1alpha1.Attach{Chassis: "n1", Migration: "m", Activation: v1alpha1.ActivationRARP}
			}
			id.NICs = []v1alpha1.NIC{v1alpha1.NICOf(c.nic, network, second)}
			pod.Annotations = map[string]string{v1alpha1.IdentityAnnotation: id.Text()}
			got, done, err := lookIdentity(pod, ref, here{node: "n1", maxMTU: 1500, link: c.asked})
			if c.port == "" {
				if done || err == nil || !strings.Contains(err.Error(), "has no interface "+c.asked) {
					t.Errorf("done %v, %v, want it to wait for %s", done, err, c.asked)
				}
				return
			}
			if err != nil || !done {
				t.Fatalf("done %v, %v", done, err)
			}
			if port, _ := got.port(ref); port != c.port || got.Subnet != c.subnet || got.first() != (c.asked == ident.FirstInterface) {
				t.Errorf("port %s of %+v, want %s in Subnet %s", port, got, c.port, c.subnet)
			}
			if c.vm && !got.first() && got.Attach.Activation != v1alpha1.ActivationNone {
				t.Errorf("the second NIC begins by %q, which is how the first one does", got.Attach.Activation)
			}
		})
	}
}

// launch makes a pod a VMI's launcher, as virt-controller makes one.
func launch(pod *corev1.Pod, vm string, uid types.UID) {
	yes := true
	pod.Labels = map[string]string{kubevirtv1.AppLabel: "virt-launcher"}
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: kubevirtv1.GroupVersion.String(), Kind: v1alpha1.KindVirtualMachineInstance, Name: vm, UID: uid, Controller: &yes}}
}

// A launcher attaches when its VM's port asks for this chassis, and to no port but its VMI's.
func TestLookLauncher(t *testing.T) {
	ref := wire.Pod{Namespace: "ns", Name: "virt-launcher-vm-abcde"}
	base := v1alpha1.Identity{
		PodUID: "pod", Subnet: "default", MTU: 1400, MAC: v1alpha1.MAC{2, 0, 0, 0, 0, 1}, IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/16")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, VMI: &v1alpha1.Instance{Name: "a.vm", UID: "vmi"},
	}
	for name, c := range map[string]struct {
		attach *v1alpha1.Attach
		spoil  func(*corev1.Pod)
		done   bool
		says   string // empty: it may attach
	}{
		"no identity yet":   {nil, nil, false, "no annotation godwit.dev/identity: VMI a.vm: godwit-controller has not allowed"},
		"not allowed yet":   {nil, nil, false, "`kubectl -n ns get ports -o wide`"},
		"allowed elsewhere": {&v1alpha1.Attach{Chassis: "n2", Migration: "m"}, nil, false, "may attach on chassis n2, and this is n1"},
		"allowed here":      {&v1alpha1.Attach{Chassis: "n1", Migration: "m"}, nil, true, ""},
		"another VMI's":     {&v1alpha1.Attach{Chassis: "n1"}, func(p *corev1.Pod) { p.OwnerReferences[0].Name = "b" }, true, "whose launcher this pod is not"},
		"an earlier VMI's":  {&v1alpha1.Attach{Chassis: "n1"}, func(p *corev1.Pod) { p.OwnerReferences[0].UID = "old" }, true, "whose launcher this pod is not"},
		"not a launcher":    {&v1alpha1.Attach{Chassis: "n1"}, func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "Job" }, true, "whose launcher this pod is not"},
		"a VMI's other pod": {&v1alpha1.Attach{Chassis: "n1"}, func(p *corev1.Pod) { p.Labels = nil }, true, "by its label kubevirt.io"},
	} {
		t.Run(name, func(t *testing.T) {
			id := base
			id.Attach = c.attach
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: ref.Name, UID: "pod", Annotations: map[string]string{v1alpha1.IdentityAnnotation: id.Text()},
			}}
			launch(pod, "a.vm", "vmi")
			if c.spoil != nil {
				c.spoil(pod)
			}
			if name == "no identity yet" {
				pod.Annotations = nil
			}
			cached, err := trimPod(pod)
			if err != nil {
				t.Fatal(err)
			}
			got, done, err := lookIdentity(cached.(*corev1.Pod), ref, here{node: "n1", maxMTU: 1500, link: "eth0"})
			if done != c.done {
				t.Errorf("done is %v, want %v", done, c.done)
			}
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v, want it to say %q", err, c.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if name, version := got.port(ref); name != "vm/ns/a.vm/default" || version != "vmi" {
				t.Errorf("port %s, version %s", name, version)
			}
		})
	}
}
