package agent

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// identity is a pod as the API has it and what its annotation says of one of its interfaces.
type identity struct {
	v1alpha1.Identity
	// UID is the API's, which a static pod's runtime does not know.
	UID string
	// network is the last part of the port's name: ident.DefaultNetwork for the first interface; for others the interface's name, and for those of a VM its VMI's.
	network string
}

// port names the OVN port of the interface and its version. It never comes from the annotation alone.
func (id identity) port(pod wire.Pod) (name ident.PortName, version string) {
	if id.VMI != nil {
		return ident.VMPort(pod.Namespace, id.VMI.Name, id.network), id.VMI.UID
	}
	return ident.PodPort(pod.Namespace, pod.Name, id.network), id.UID
}

// first says whether the interface is the pod's first, which has the default routes.
func (id identity) first() bool { return id.network == ident.DefaultNetwork }

// here is what an identity is judged by besides the pod.
type here struct {
	node   string
	maxMTU int
	// link is the name of the interface in the pod.
	link string
}

func (a *attacher) here(req *wire.Request) here {
	return here{node: a.cfg.NodeName, maxMTU: a.node.mtu.Load(), link: req.IfName}
}

// lookIdentity judges the pod as it is now. done: no event will change the outcome; else err says what is missing.
func lookIdentity(pod *corev1.Pod, ref wire.Pod, on here) (id identity, done bool, err error) {
	if pod == nil {
		return identity{}, false, fmt.Errorf("pod %s: the API server has not shown it on this node: is it scheduled here, and is the API server reachable?", ref)
	}
	if ref.UID != "" && string(pod.UID) != ref.UID && pod.Annotations[mirrorAnnotation] != ref.UID {
		return identity{}, false, fmt.Errorf("pod %s: the runtime starts the pod with UID %s, but the API server has UID %s: one of them is gone already",
			ref, ref.UID, pod.UID)
	}
	text, ok := pod.Annotations[v1alpha1.IdentityAnnotation]
	if vm, _, launcher := migration.LauncherOf(pod); !ok && launcher {
		return identity{}, false, fmt.Errorf("launcher pod %s: no annotation %s: %w", ref, v1alpha1.IdentityAnnotation, notAllowed(vm, ref.Namespace))
	}
	if !ok {
		return identity{}, false, fmt.Errorf("pod %s: no annotation %s: is godwit-controller running, and does it report an event on the pod "+
			"(kubectl -n %s describe pod %s)?", ref, v1alpha1.IdentityAnnotation, ref.Namespace, ref.Name)
	}
	parsed, err := v1alpha1.ParseIdentity(text)
	if err != nil {
		return identity{}, true, fmt.Errorf("pod %s: %w", ref, err)
	}
	if parsed.PodUID != string(pod.UID) {
		return identity{}, false, fmt.Errorf("pod %s: annotation %s is for UID %s, the pod has UID %s: only godwit-controller may write it",
			ref, v1alpha1.IdentityAnnotation, parsed.PodUID, pod.UID)
	}
	if parsed.VMI != nil {
		if done, err := lookLauncher(pod, parsed, on.node); err != nil {
			return identity{}, done, fmt.Errorf("launcher pod %s: %w", ref, err)
		}
	}
	id = identity{Identity: parsed, UID: string(pod.UID), network: ident.DefaultNetwork}
	if on.link != ident.FirstInterface {
		if id, err = lookNIC(id, ref, on.link); err != nil {
			return identity{}, false, err
		}
	}
	if parsed = id.Identity; parsed.MTU > on.maxMTU {
		return identity{}, true, fmt.Errorf("pod %s: its MTU %d is over this node's %d: lower spec.mtu of Subnet %s, or raise the MTU of this node's underlay",
			ref, parsed.MTU, on.maxMTU, parsed.Subnet)
	}
	return id, true, nil
}

// lookNIC finds one of the pod's interfaces on second networks. What the CNI configuration says of it besides its name counts for nothing: whoever may write a
// NetworkAttachmentDefinition gets what the controller has allowed. A launcher's has the name that KubeVirt gives it.
func lookNIC(id identity, ref wire.Pod, link string) (identity, error) {
	nic, ok := id.NIC(link)
	if !ok || id.VMI != nil && ident.LauncherInterface(nic.Network) != link {
		return identity{}, fmt.Errorf("pod %s: annotation %s has no interface %s: is it one of annotation %s on a NetworkAttachmentDefinition of type %s, and does godwit-controller "+
			"report an event on the pod (kubectl -n %s describe pod %s), or, of a VM, on the VMI?", ref, v1alpha1.IdentityAnnotation, link, nad.Annotation, ident.PluginName, ref.Namespace, ref.Name)
	}
	id.network = link
	if id.VMI != nil {
		id.network = nic.Network
	}
	id.Identity = id.Of(nic)
	return id, nil
}

// lookLauncher judges whether a VM's launcher may attach here: its port must ask for this chassis first, or the port would be claimed from the node
// where the VM runs, or by nobody.
func lookLauncher(pod *corev1.Pod, id v1alpha1.Identity, node string) (done bool, err error) {
	if vm, uid, ok := migration.LauncherOf(pod); !ok || vm != id.VMI.Name || string(uid) != id.VMI.UID {
		return true, fmt.Errorf("annotation %s is for VMI %s (%s), whose launcher this pod is not, by its label %s and its controller: only godwit-controller may write it",
			v1alpha1.IdentityAnnotation, id.VMI.Name, id.VMI.UID, kubevirtv1.AppLabel)
	}
	if id.Attach == nil {
		return false, notAllowed(id.VMI.Name, pod.Namespace)
	}
	if id.Attach.Chassis != node {
		return false, fmt.Errorf("VMI %s: this launcher may attach on chassis %s, and this is %s: is the node's name that of the chassis?",
			id.VMI.Name, id.Attach.Chassis, node)
	}
	return true, nil
}

// notAllowed: a launcher gets its identity when it may attach.
func notAllowed(vmi, namespace string) error {
	return fmt.Errorf("VMI %s: godwit-controller has not allowed this launcher to attach: is it running, has the VM's Port no address, does the VM run elsewhere, or does "+
		"a migration wait? `kubectl -n %[2]s get ports -o wide`, `kubectl -n %[2]s get portmigrations -o wide` and the events of the VMI say why", vmi, namespace)
}

// waitIdentity returns the identity of the pod, or what was missing when ctx ended. A pod that was there and is deleted ends the wait.
func (a *attacher) waitIdentity(ctx context.Context, req *wire.Request) (identity, error) {
	ref := req.Pod
	start := time.Now()
	var id identity
	var missing error
	seen := false
	err := a.inputs.waitPod(ctx, ref.String(), func(pod *corev1.Pod) (done bool) {
		if pod == nil && seen {
			missing = fmt.Errorf("pod %s: was deleted while it was being attached", ref)
			return true
		}
		seen = seen || pod != nil
		id, done, missing = lookIdentity(pod, ref, a.here(req))
		return done
	})
	if err != nil {
		return identity{}, fmt.Errorf("%w (%w)", missing, waited("the identity", start, err))
	}
	return id, missing
}
