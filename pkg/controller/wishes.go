package controller

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// wishes are what annotations of a pod, or of a VM's template, ask for, or what a pod does on a second network.
type wishes struct {
	subnet, mac, reclaim string
	ips                  []string
	// network is "NAMESPACE/NAME" of a NetworkAttachmentDefinition, empty for annotations.
	network string
	// claim is the name of an IPAMClaim that says the addresses, empty if none does.
	claim string
}

// where tells people where one of the wishes is written, by the key of the annotation.
func (w wishes) where(annotation string) string {
	switch {
	case w.network == "":
		return "annotation " + annotation
	case annotation == v1alpha1.SubnetAnnotation:
		return "subnet of NetworkAttachmentDefinition " + w.network
	case annotation == v1alpha1.MACAnnotation:
		return "mac of network " + w.network
	case w.claim != "":
		return "ipam-claim-reference " + w.claim + " of network " + w.network
	}
	return "ips of network " + w.network
}

func wishesOf(annotations map[string]string) wishes {
	said := func(key string) string { return strings.TrimSpace(annotations[key]) }
	w := wishes{subnet: said(v1alpha1.SubnetAnnotation), mac: said(v1alpha1.MACAnnotation), reclaim: said(v1alpha1.ReclaimAnnotation)}
	for ip := range strings.SplitSeq(annotations[v1alpha1.IPsAnnotation], ",") {
		if ip = strings.TrimSpace(ip); ip != "" {
			w.ips = append(w.ips, ip)
		}
	}
	return w
}

// addresses are those that are asked for, at most one of each family. A Port's are checked by its definition.
func (w wishes) addresses() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range w.ips {
		ip, err := netip.ParseAddr(text)
		switch {
		case err != nil || ip.Zone() != "":
			return nil, fmt.Errorf("%s: %q is no address: want such as 10.244.0.7 or fd00:10:244::7, without a prefix length", w.where(v1alpha1.IPsAnnotation), text)
		case slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == ip.Unmap().Is4() }):
			return nil, fmt.Errorf("%s: two addresses of one family, want at most one of each", w.where(v1alpha1.IPsAnnotation))
		}
		out = append(out, ip.Unmap())
	}
	return out, nil
}

// hardware is the MAC that is asked for, nil if none is.
func (w wishes) hardware() (v1alpha1.MAC, error) {
	if w.mac == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(w.mac)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%s: %q is no MAC address: want six pairs of hexadecimal digits with colons between", w.where(v1alpha1.MACAnnotation), w.mac)
	}
	return v1alpha1.MAC(mac), nil
}

// wishesFor are those for a NIC of a VM, by annotations that KubeVirt copies from its template to the VMI. They are for the NIC on the pod network.
func wishesFor(vmi *kubevirtv1.VirtualMachineInstance, network string) wishes {
	if network != podNetwork {
		return wishes{}
	}
	return wishesOf(vmi.Annotations)
}

// unmet are the annotations that a Port, which exists and has its addresses, does not follow.
func (w wishes) unmet(status v1alpha1.PortStatus) []string {
	var out []string
	if w.subnet != "" && w.subnet != status.Subnet {
		out = append(out, v1alpha1.SubnetAnnotation)
	}
	has := parseAddrs(status.IPs)
	if slices.ContainsFunc(w.ips, func(text string) bool {
		ip, err := netip.ParseAddr(text)
		return err != nil || !slices.Contains(has, ip)
	}) {
		out = append(out, v1alpha1.IPsAnnotation)
	}
	if mac, err := w.hardware(); err != nil || mac != nil && mac.String() != strings.ToLower(status.MAC) {
		out = append(out, v1alpha1.MACAnnotation)
	}
	return out
}

// sayUnmet tells whoever starts a VM that its Port is another than its template asks for.
func (r *vmReconciler) sayUnmet(vmi *kubevirtv1.VirtualMachineInstance, port *v1alpha1.Port) {
	starting := slices.Contains([]kubevirtv1.VirtualMachineInstancePhase{kubevirtv1.VmPhaseUnset, kubevirtv1.Pending, kubevirtv1.Scheduling}, vmi.Status.Phase)
	if !starting || len(port.Status.IPs) == 0 {
		return
	}
	if unmet := wishesFor(vmi, port.Spec.Target.Network).unmet(port.Status); len(unmet) > 0 {
		r.events.Eventf(vmi, nil, corev1.EventTypeWarning, "AnnotationIgnored", "MakePort",
			"the VM has Port %s with Subnet %s, addresses %s and MAC %s, whatever its template's %s say: a Port is made once; delete it while the VM is stopped to have another",
			port.Name, port.Status.Subnet, strings.Join(port.Status.IPs, " "), port.Status.MAC, strings.Join(unmet, " and "))
	}
}
