package controller

import (
	"fmt"
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
		asked = macOf(vmi)
	}
	for _, text := range []string{asked, port.Spec.MAC, port.Status.MAC} {
		if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 {
			return v1alpha1.MAC(mac)
		}
	}
	return v1alpha1.MAC(ident.MAC(ips[0].Addr()))
}

// claimMAC keeps one VM from answering for another, or for a pod or the gateway: these have MACs that follow from their addresses.
func (r *portReconciler) claimMAC(port *v1alpha1.Port, mac v1alpha1.MAC, ips []netip.Prefix) metav1.Condition {
	if ident.Derived(net.HardwareAddr(mac)) && mac.String() != ident.MAC(ips[0].Addr()).String() {
		return condition(metav1.ConditionFalse, reasonMACReserved,
			fmt.Sprintf("MAC %s is in the range from which Godwit makes those of pods and gateways: choose one that begins otherwise than %s", mac, mac.String()[:5]))
	}
	if mac[0]&1 != 0 {
		return condition(metav1.ConditionFalse, v1alpha1.ReasonInvalid, fmt.Sprintf("MAC %s is a multicast address: choose one whose second digit is even", mac))
	}
	if other, ok := r.alloc.takeMAC(portHolder(client.ObjectKeyFromObject(port)), mac); !ok {
		return condition(metav1.ConditionFalse, reasonMACTaken, fmt.Sprintf("MAC %s is that of Port %s: choose another", mac, other.key))
	}
	return metav1.Condition{}
}
