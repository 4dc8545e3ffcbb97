package controller

import (
	"context"
	"errors"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// errBadNAD: a NetworkAttachmentDefinition's config cannot be read.
var errBadNAD = errors.New("not valid")

// nicHolder is a pod's interface on a second network, by the link's name.
func nicHolder(pod types.NamespacedName, link string) holder {
	return holder{kind: ident.OwnerPod, key: pod, nic: link}
}

// remember notes that a pod has, or waits for, addresses on a second network.
func (a *allocations) remember(h holder) {
	if h.nic == "" {
		return
	}
	if a.nics[h.key] == nil {
		a.nics[h.key] = map[string]bool{}
	}
	a.nics[h.key][h.nic] = true
}

// nicsOf are the names of the links of a pod that have, or wait for, addresses on second networks.
func (a *allocations) nicsOf(pod types.NamespacedName) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.nics[pod]))
}

// releasePod takes back what a pod has, on all its interfaces.
func (a *allocations) releasePod(pod types.NamespacedName) {
	for _, link := range a.nicsOf(pod) {
		a.releaseNIC(pod, link)
	}
	a.release(podHolder(pod))
}

// releaseNIC takes back what a pod has on a second network.
func (a *allocations) releaseNIC(pod types.NamespacedName, link string) {
	a.release(nicHolder(pod, link))
	a.mu.Lock()
	defer a.mu.Unlock()
	if delete(a.nics[pod], link); len(a.nics[pod]) == 0 {
		delete(a.nics, pod)
	}
}

// identityOf is the identity that a pod has, the zero value if it has none: one of an earlier pod of the name is none, nor is one that cannot be read.
func identityOf(pod *corev1.Pod) v1alpha1.Identity {
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil || id.PodUID != string(pod.UID) {
		return v1alpha1.Identity{}
	}
	return id
}

// attachment is one interface of a pod: who has its addresses, the last part of its port's name, and what it is.
type attachment struct {
	holder  holder
	network string
	v1alpha1.Identity
}

// attachments are a pod's interfaces by its identity, the first one first; none if it is nobody's or a VM's.
func attachments(pod *corev1.Pod, id v1alpha1.Identity) []attachment {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	if id.PodUID != string(pod.UID) || id.VMI != nil {
		return nil
	}
	first := id
	first.NICs = nil
	out := []attachment{{podHolder(key), podNetwork, first}}
	for _, nic := range id.NICs {
		out = append(out, attachment{nicHolder(key, nic.Interface), nic.Interface, id.Of(nic)})
	}
	return out
}

// rowsOf are a pod's rows by network. Only of a pod that selects second networks, or has any, more than the first is looked for.
func (a *allocations) rowsOf(ctx context.Context, pod *corev1.Pod) (map[string]*nbdb.LogicalSwitchPort, error) {
	out := map[string]*nbdb.LogicalSwitchPort{}
	first, err := a.nb.Port(ctx, ident.PodPort(pod.Namespace, pod.Name, podNetwork))
	if err != nil {
		return nil, err
	}
	if first != nil {
		out[podNetwork] = first
	}
	if pod.Annotations[nad.Annotation] == "" && len(a.nicsOf(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})) == 0 {
		return out, nil
	}
	rows, err := a.nb.PodPorts(ctx, pod.Namespace, pod.Name)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		if _, _, network, ok := ident.ParsePodPort(ident.PortName(row.Name)); ok {
			out[network] = row
		}
	}
	return out, nil
}
