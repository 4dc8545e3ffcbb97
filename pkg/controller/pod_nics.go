package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// decideNICs finds out what a pod has on second networks: what it has had, and what it has none of yet. One that cannot be had is left out, and keeps none of the others
// from their work. What the pod selects no more is taken away.
func (r *podReconciler) decideNICs(ctx context.Context, pod *corev1.Pod, current v1alpha1.Identity) ([]v1alpha1.NIC, error) {
	if isLauncher(pod) {
		return nil, nil // of a VM without a NIC on the pod network: see vm_networks.go
	}
	selections, err := nad.ParseSelections(pod.Annotations[nad.Annotation], pod.Namespace)
	if err != nil {
		r.events.Eventf(pod, nil, corev1.EventTypeWarning, v1alpha1.ReasonInvalid, "AllocateAddress", "%v", err)
		return current.NICs, nil
	}
	var keep []string
	var waits []types.NamespacedName
	for _, s := range selections {
		has, ok := current.NIC(s.Interface)
		same := ok && has.Network == s.Network()
		if same || !ok {
			keep = append(keep, s.Interface)
		}
		if !same {
			waits = append(waits, types.NamespacedName{Namespace: s.Namespace, Name: s.Name})
		}
	}
	key := client.ObjectKeyFromObject(pod)
	r.nads.await(podHolder(key), waits)
	if err := r.dropNICs(ctx, pod, keep); err != nil {
		return nil, err
	}
	var out []v1alpha1.NIC
	for _, s := range selections {
		nic, err := r.decideNIC(ctx, pod, s, current)
		if errors.Is(err, errWaiting) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("pod %s: interface %s: %w", key, s.Interface, err)
		}
		out = append(out, nic)
	}
	return out, nil
}

// decideNIC is errWaiting for a NIC that cannot be had now, and for one that is another plugin's business.
func (r *podReconciler) decideNIC(ctx context.Context, pod *corev1.Pod, s nad.Selection, current v1alpha1.Identity) (v1alpha1.NIC, error) {
	n := nicRequest{holder: nicHolder(client.ObjectKeyFromObject(pod), s.Interface), wishes: wishesOfNIC(s)}
	has, ok := current.NIC(s.Interface)
	if ok = ok && has.Network == s.Network(); ok {
		n.current, n.wishes.subnet = current.Of(has), has.Subnet
	} else {
		conf, err := r.nads.config(ctx, types.NamespacedName{Namespace: s.Namespace, Name: s.Name})
		if errors.Is(err, errBadNAD) {
			return v1alpha1.NIC{}, r.refuse(pod, n, v1alpha1.ReasonInvalid, err.Error())
		}
		if err != nil {
			return v1alpha1.NIC{}, err
		}
		if !conf.Ours {
			return v1alpha1.NIC{}, errWaiting
		}
		n.wishes.subnet = conf.Subnet
	}
	id, err := r.decideByClaim(ctx, pod, s.Claim, n)
	if errors.Is(err, errWaiting) && ok {
		return has, nil // it waits with what it has
	}
	return v1alpha1.NICOf(s.Interface, s.Network(), id), err
}

// dropNICs takes the rows and addresses of a pod's second networks away, but for those of the links that keep names. A row of an earlier pod of the name goes in any case.
func (r *podReconciler) dropNICs(ctx context.Context, pod *corev1.Pod, keep []string) error {
	key := client.ObjectKeyFromObject(pod)
	rows, err := r.alloc.rowsOf(ctx, pod)
	if err != nil {
		return err
	}
	var changes []ovn.Change
	for network, row := range rows {
		if network == podNetwork || slices.Contains(keep, network) && row.ExternalIDs[ident.KeyUID] == string(pod.UID) {
			continue
		}
		r.policies.deletePort(ident.PortName(row.Name))
		changes = append(changes, ovn.DeletePort(ident.PortName(row.Name)))
	}
	if len(changes) > 0 {
		if err := r.nb.Apply(ctx, append(changes, r.policies.pending())...); err != nil {
			return fmt.Errorf("pod %s: delete ports on second networks: %w", key, err)
		}
	}
	for _, link := range r.alloc.nicsOf(key) {
		if !slices.Contains(keep, link) {
			r.alloc.releaseNIC(key, link) // after the rows are gone
		}
	}
	return nil
}

// wishesOfNIC are what a pod asks for on a second network.
func wishesOfNIC(s nad.Selection) wishes {
	return wishes{network: s.Network(), mac: s.MAC, ips: s.IPs}
}
