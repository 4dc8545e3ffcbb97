package controller

// Pod reconciler.
// In:   Pods that are no VM's launchers (annotations godwit.dev/{subnet,ips,mac}, k8s.v1.cni.cncf.io/networks), NetworkAttachmentDefinitions of our type, Namespaces
//       (labels), Subnets (selectors, MTU, gateways), the smallest MTU of all nodes.
// Out:  annotation godwit.dev/identity of the Pod; LogicalSwitchPorts pod/NAMESPACE/NAME/default and pod/NAMESPACE/NAME/LINK, of second networks: addresses, port_security, options:requested-chassis,
//       options:iface-id-ver, external_ids godwit.dev/{owner,namespace,name,uid,subnet}; QoS rows of the pod's bandwidth annotations.
// The identity is written when the pod is created, the row when its node is known.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

type podReconciler struct {
	api      client.Client
	nb       *ovn.NB
	alloc    *allocations
	policies *policies
	place    subnetChoice
	virt     *kubevirt
	nads     *nads
	byClaim  *ipamClaims
	events   events.EventRecorder
	log      *slog.Logger
}

// Reconcile implements reconcile.Reconciler.
func (r *podReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.alloc.restore.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("pod %s: %w", req.NamespacedName, err)
	}
	var pod corev1.Pod
	err := r.api.Get(ctx, req.NamespacedName, &pod)
	if apierrors.IsNotFound(err) || err == nil && !networked(&pod) {
		return reconcile.Result{}, r.forget(ctx, req.NamespacedName)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read pod %s: %w", req.NamespacedName, err)
	}
	ofVM, err := r.virt.carries(ctx, r.api, &pod)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("pod %s: %w", req.NamespacedName, err)
	}
	if ofVM {
		return reconcile.Result{}, nil // vm.go's: the interface is the VM's
	}
	if err := r.removePredecessor(ctx, &pod); err != nil {
		return reconcile.Result{}, err
	}
	id, err := r.decide(ctx, &pod)
	if errors.Is(err, errWaiting) {
		return reconcile.Result{}, nil // enqueued again by whatever it waits for
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return writeIdentity(gctx, r.api, &pod, id) })
	g.Go(func() error { return r.ensureRows(gctx, &pod, id) })
	return reconcile.Result{}, g.Wait()
}

// networked says whether a pod needs a port: it is not on its node's own network, and it may still run.
func networked(pod *corev1.Pod) bool {
	return !pod.Spec.HostNetwork && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// errWaiting: the pod cannot be served now; an event on it says why, and what it waits for enqueues it again.
var errWaiting = errors.New("waiting")

// nicRequest is an interface of a pod: who has its addresses, what is asked for, and what it is by the pod's identity, the zero value if that says nothing of it.
type nicRequest struct {
	holder  holder
	wishes  wishes
	current v1alpha1.Identity
	// claim is the IPAMClaim by which it has its addresses, the zero value for none.
	claim ipamClaim
}

// decide finds out what the pod's identity is, allocating its addresses when it has none.
func (r *podReconciler) decide(ctx context.Context, pod *corev1.Pod) (v1alpha1.Identity, error) {
	current := identityOf(pod)
	id, err := r.decideOne(ctx, pod, nicRequest{holder: podHolder(client.ObjectKeyFromObject(pod)), wishes: wishesOf(pod.Annotations), current: current})
	if err != nil {
		return v1alpha1.Identity{}, err
	}
	id.NICs, err = r.decideNICs(ctx, pod, current)
	return id, err
}

// decideOne finds out what one interface of a pod is.
func (r *podReconciler) decideOne(ctx context.Context, pod *corev1.Pod, n nicRequest) (v1alpha1.Identity, error) {
	key, w := client.ObjectKeyFromObject(pod), n.wishes
	has := addrsOf(n.current.IPs)
	ask := request{had: has, in: w.subnet, claim: n.claim, turn: r.alloc.turn()}
	var err error
	if ask.wanted, err = w.addresses(); err != nil && has == nil {
		return v1alpha1.Identity{}, r.refuse(pod, n, v1alpha1.ReasonInvalid, err.Error())
	}
	name := n.current.Subnet
	if has == nil {
		if name, err = r.place.on(cmp.Or(n.holder.nic, podNetwork)).allowed(ctx, pod.Namespace, w.subnet); errors.Is(err, errNotOpen) {
			r.alloc.await(n.holder, name, ask.turn)
			return v1alpha1.Identity{}, r.refuse(pod, n, reasonNotOpen, w.where(v1alpha1.SubnetAnnotation)+": "+err.Error())
		}
		if err != nil {
			return v1alpha1.Identity{}, err
		}
	}
	subnet, ips, err := r.alloc.take(n.holder, pod.UID, name, ask)
	for _, refusal := range []struct {
		sentinel     error
		reason, hint string
	}{
		{ipam.ErrFull, reasonSubnetFull, "the pod gets its address when one is freed; enlarge the range with another Subnet or delete pods"},
		{errNoSubnet, reasonNoSubnet, "see the conditions of `kubectl get subnet " + name + " -o yaml`"},
		{ipam.ErrTaken, reasonIPTaken, "the pod gets it when it is freed; or make the pod with another " + w.where(v1alpha1.IPsAnnotation)},
		{ipam.ErrOutOfRange, reasonIPRange, "make the pod with another " + w.where(v1alpha1.IPsAnnotation) + " or " + w.where(v1alpha1.SubnetAnnotation)},
	} {
		if errors.Is(err, refusal.sentinel) {
			return v1alpha1.Identity{}, r.refuse(pod, n, refusal.reason, err.Error()+": "+refusal.hint)
		}
	}
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("pod %s: %w", key, err)
	}
	if has != nil && !slices.Equal(has, addrsOf(ips)) && pod.Status.PodIP != "" {
		r.log.Warn("a pod that runs gets another address", "pod", key, "had", has, "gets", ips)
		r.events.Eventf(pod, nil, corev1.EventTypeWarning, "AddressChanged", "AllocateAddress",
			"another has %v, the pod gets %v: its interface still has the old address; delete the pod", has, ips)
	}
	mac, err := r.decideMAC(pod, n, subnet, ips)
	if err != nil {
		return v1alpha1.Identity{}, err
	}
	id, err := r.identity(ctx, pod, n.current, subnet, ips)
	id.MAC = mac
	return id, err
}

// refuse says on a pod why it, or one of its interfaces, cannot be served. What it waits for enqueues it, its own correction too.
func (r *podReconciler) refuse(pod *corev1.Pod, n nicRequest, reason, message string) error {
	if n.holder.nic != "" {
		message = "interface " + n.holder.nic + ": " + message
	}
	r.events.Eventf(pod, nil, corev1.EventTypeWarning, reason, "AllocateAddress", "%s", message)
	return errWaiting
}

// decideMAC: what the pod has, else what it asks for, else one that is made of its first address. Of IPv4 no two have the same, and nobody need claim it.
func (r *podReconciler) decideMAC(pod *corev1.Pod, n nicRequest, subnet string, ips []netip.Prefix) (v1alpha1.MAC, error) {
	first := ips[0].Addr()
	made := v1alpha1.MAC(ident.MAC(first))
	var mac v1alpha1.MAC
	if ownMAC(pod, n.current) || n.current.MAC.String() == made.String() {
		mac = n.current.MAC
	} else if n.current.PodUID == "" { // it has none yet; one that has keeps it, whatever is asked for later
		var err error
		if mac, err = n.wishes.hardware(); err != nil {
			return nil, r.refuse(pod, n, v1alpha1.ReasonInvalid, err.Error())
		}
	}
	switch {
	case first.Is4() && (mac == nil || mac.String() == made.String()):
		mac = made
	case mac == nil:
		mac = r.alloc.makeMAC(n.holder, subnet, first, 0)
	default:
		if reason, message := r.alloc.claimMAC(n.holder, subnet, mac, ips); reason != "" {
			return nil, r.refuse(pod, n, reason, message)
		}
	}
	r.alloc.keepMAC(n.holder, subnet, mac)
	return mac, nil
}

func (r *podReconciler) identity(ctx context.Context, pod *corev1.Pod, current v1alpha1.Identity, name string, ips []netip.Prefix) (v1alpha1.Identity, error) {
	var subnet v1alpha1.Subnet
	err := r.api.Get(ctx, types.NamespacedName{Name: name}, &subnet, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) { // deleted between the allocation and now; its reconciler waits for this pod
		return v1alpha1.Identity{}, errWaiting
	}
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("read Subnet %s: %w", name, err)
	}
	spec, err := ipam.ParseSpec(subnet.Spec.CIDRs, subnet.Spec.Gateways, nil) // what is excluded is no part of an identity
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("Subnet %s: %w", subnet.Name, err)
	}
	id := v1alpha1.Identity{
		PodUID: string(pod.UID), Subnet: subnet.Name, IPs: ips, Gateways: spec.Gateways, MTU: subnet.Spec.MTU,
	}
	if id.MTU == 0 {
		id.MTU = r.alloc.mtu()
	}
	// A pod that is attached keeps its MTU: it would not notice another.
	if attached := pod.Status.PodIP != ""; attached && current.PodUID == id.PodUID && current.MTU != 0 {
		id.MTU = current.MTU
	}
	if id.MTU == 0 {
		return v1alpha1.Identity{}, errWaiting // no node has an agent yet; the first that publishes its MTU enqueues every pod
	}
	return id, nil
}

// removePredecessor deletes the row of an earlier pod of the same name, which may be on another switch. It comes before the allocation, which frees that pod's
// address: the new pod may have no node, and so no row, for a long time, and nobody else gets an address that a port still has.
func (r *podReconciler) removePredecessor(ctx context.Context, pod *corev1.Pod) error {
	have, err := r.nb.Port(ctx, ident.PodPort(pod.Namespace, pod.Name, podNetwork))
	if err != nil || have == nil || have.ExternalIDs[ident.KeyUID] == string(pod.UID) {
		return err
	}
	if err := r.remove(ctx, client.ObjectKeyFromObject(pod)); err != nil {
		return fmt.Errorf("pod %s/%s: delete the port of its predecessor: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// ensureRows writes the pod's rows once its node is known.
func (r *podReconciler) ensureRows(ctx context.Context, pod *corev1.Pod, id v1alpha1.Identity) error {
	if pod.Spec.NodeName == "" {
		return nil
	}
	var changes []ovn.Change
	for _, at := range attachments(pod, id) {
		lsp := topology.Pod(pod.Namespace, pod.Name, at.network, ident.ChassisName(pod.Spec.NodeName), at.Identity)
		changes = append(changes, ovn.EnsurePort(ident.SubnetSwitch(at.Subnet), lsp))
	}
	limits, err := topology.PodBandwidth(pod.Namespace, pod.Name, podNetwork, pod.Annotations)
	if err != nil { // the pod runs without limits rather than not at all
		r.events.Eventf(pod, nil, corev1.EventTypeWarning, "BadBandwidth", "LimitBandwidth", "%v: the pod has no bandwidth limit", err)
	}
	r.policies.setPod(pod, id)
	changes = append(changes, ovn.SetPodQoS(ident.SubnetSwitch(id.Subnet), pod.Namespace, pod.Name, limits), r.policies.pending())
	if err := r.nb.Apply(ctx, changes...); err != nil {
		return fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// forget frees what a pod had that is gone, finished, or needs nothing.
func (r *podReconciler) forget(ctx context.Context, key types.NamespacedName) error {
	if err := r.remove(ctx, key); err != nil {
		return fmt.Errorf("pod %s: %w", key, err)
	}
	r.nads.await(podHolder(key), nil)
	r.alloc.releasePod(key) // after the rows are gone: nobody else gets an address that a port or a policy still has
	return nil
}

// remove takes a pod's rows away, and its addresses out of those of policies.
func (r *podReconciler) remove(ctx context.Context, key types.NamespacedName) error {
	rows, err := r.nb.PodPorts(ctx, key.Namespace, key.Name)
	if err != nil {
		return err
	}
	ports := []ident.PortName{ident.PodPort(key.Namespace, key.Name, podNetwork)}
	for _, link := range r.alloc.nicsOf(key) {
		ports = append(ports, ident.PodPort(key.Namespace, key.Name, link))
	}
	for _, row := range rows {
		if name := ident.PortName(row.Name); !slices.Contains(ports, name) {
			ports = append(ports, name)
		}
	}
	changes := []ovn.Change{ovn.SetPodQoS("", key.Namespace, key.Name, nil)}
	for _, port := range ports {
		r.policies.deletePort(port)
		changes = append(changes, ovn.DeletePort(port))
	}
	return r.nb.Apply(ctx, append(changes, r.policies.pending())...)
}
