package controller

import (
	"net"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// askedMAC: what the VM's definition says, else the Port's, else what the port has; nil if there is none of these. What a port has stays though the VM is stopped.
func askedMAC(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance) v1alpha1.MAC {
	asked := ""
	if uses(vmi, port) {
		asked = macOf(vmi, port.Spec.Target.Network)
	}
	for _, text := range []string{asked, port.Spec.MAC, port.Status.MAC} {
		if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 {
			return v1alpha1.MAC(mac)
		}
	}
	return nil
}

// decideMAC gives a Port the MAC that is asked for, or says why it cannot have it; where none is asked for one that is made of its first address. Two IPv6 Subnets have many of their
// addresses' last bytes in common, and a guest's NICs shall not have one MAC: on second networks it is not made of these alone.
func (r *portReconciler) decideMAC(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance, subnet string, ips []netip.Prefix) (v1alpha1.MAC, metav1.Condition) {
	h, mac := portHolder(client.ObjectKeyFromObject(port)), askedMAC(port, vmi)
	if mac == nil {
		from := 0
		if port.Spec.Target.Network != podNetwork && ips[0].Addr().Is6() {
			from = 1
		}
		return r.alloc.makeMAC(h, subnet, ips[0].Addr(), from), metav1.Condition{}
	}
	if reason, message := r.alloc.claimMAC(h, subnet, mac, ips); reason != "" {
		return nil, condition(metav1.ConditionFalse, reason, message)
	}
	return mac, metav1.Condition{}
}
