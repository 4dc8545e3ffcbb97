package migration

import (
	"encoding/json"
	"slices"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
)

// networks are the names of the networks that a launcher has an interface on, sorted: ident.DefaultNetwork, which every pod has, and the names in
// the VMI's spec.networks of those that the annotation lists, which KubeVirt writes. Source and target may differ: KubeVirt migrates a VM to plug a NIC in. Nil
// means that the annotation could not be understood.
func networks(pod *corev1.Pod, vmi *kubevirtv1.VirtualMachineInstance) []string {
	out := []string{ident.DefaultNetwork}
	text := pod.Annotations[nad.Annotation]
	if text == "" {
		return out
	}
	var interfaces []struct {
		Interface string `json:"interface"`
	}
	if err := json.Unmarshal([]byte(text), &interfaces); err != nil {
		return nil // the comma-separated form, which KubeVirt does not write
	}
	names := map[string]string{}
	for i := range vmi.Spec.Networks {
		if n := &vmi.Spec.Networks[i]; n.Multus != nil && !n.Multus.Default {
			names[ident.LauncherInterface(n.Name)] = n.Name
		}
	}
	for _, i := range interfaces {
		name, known := names[i.Interface]
		if !known {
			return nil // KubeVirt's old names, net1 and on, or not KubeVirt's interface: better all networks than too few
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// carries says whether a launcher has an interface on a network.
func (l Launcher) carries(network string) bool {
	return l.Networks == nil || slices.Contains(l.Networks, network)
}
