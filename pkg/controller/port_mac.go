package controller

import (
	"net"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// decideMAC: what the VM's definition says, else the Port's, else what the port has, else one that follows from its first address. What a port has
// stays though the VM is stopped.
func decideMAC(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance, ips []netip.Prefix) v1alpha1.MAC {
	asked := ""
	if uses(vmi, port) {
		asked = macOf(vmi, port.Spec.Target.Network)
	}
	for _, text := range []string{asked, port.Spec.MAC, port.Status.MAC} {
		if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 {
			return v1alpha1.MAC(mac)
		}
	}
	return v1alpha1.MAC(ident.MAC(ips[0].Addr()))
}

// claimMAC gives a Port's MAC to it, or says why it cannot have it.
func (r *portReconciler) claimMAC(port *v1alpha1.Port, mac v1alpha1.MAC, ips []netip.Prefix) metav1.Condition {
	if reason, message := r.alloc.claimMAC(portHolder(client.ObjectKeyFromObject(port)), mac, ips); reason != "" {
		return condition(metav1.ConditionFalse, reason, message)
	}
	return metav1.Condition{}
}
