package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nad"
)

// observeSecond adds the Ports of a VM on second networks: it makes those that its VMI has none of. What is of a network that the VMI has no more
// is carried by no launcher, and goes by vm_declared.go.
func (r *vmReconciler) observeSecond(ctx context.Context, vm types.NamespacedName, o *observed) error {
	ports, err := portsByUse(ctx, r.api, r.nb, vm)
	if err != nil {
		return err
	}
	if o.vmi != nil {
		has, err := r.ensureSeconds(ctx, holder{kind: ident.OwnerVM, key: vm}, o.vmi, ports)
		if err != nil {
			return err
		}
		maps.Copy(o.ports, has)
	} else {
		r.nads.await(holder{kind: ident.OwnerVM, key: vm}, nil)
	}
	for _, port := range ports {
		network := port.Spec.Target.Network
		if network == podNetwork {
			continue
		}
		if o.ports[network] == nil && (o.vmi == nil || uses(o.vmi, port)) {
			o.ports[network] = port
		}
		if err := r.observeRow(ctx, vm, network, o); err != nil {
			return err
		}
	}
	return nil
}

// ensureSeconds are the Ports of a VMI's NICs on second networks, by network. It makes those that are not among the VM's ports; where a definition is missing, h waits for that.
func (r *vmReconciler) ensureSeconds(ctx context.Context, h holder, vmi *kubevirtv1.VirtualMachineInstance, ports []*v1alpha1.Port) (map[string]*v1alpha1.Port, error) {
	networks := secondNetworks(vmi)
	var waits []types.NamespacedName
	for network, key := range networks {
		if portFor(vmi, network, ports) == nil {
			waits = append(waits, key)
		}
	}
	r.nads.await(h, waits)
	out := map[string]*v1alpha1.Port{}
	for network, key := range networks {
		port, err := r.ensureSecond(ctx, vmi, network, key, ports)
		if err != nil {
			return nil, err
		}
		if port != nil {
			out[network] = port
		}
	}
	return out, nil
}

// observeRow reads the row of a VM's NIC, if it is that of the NIC's Port.
func (r *vmReconciler) observeRow(ctx context.Context, vm types.NamespacedName, network string, o *observed) error {
	name := ident.VMPort(vm.Namespace, vm.Name, network)
	row, err := r.nb.Port(ctx, name)
	if port := o.ports[network]; err != nil || row == nil || port == nil || row.ExternalIDs[ident.KeyUID] != string(port.UID) {
		return err
	}
	o.rows[network] = row
	binding, err := r.sb.Binding(ctx, name)
	if binding != nil && !slices.Contains(o.bindings, binding) {
		o.bindings = append(o.bindings, binding)
	}
	return err
}

// secondNetworks are the NetworkAttachmentDefinitions of a VMI's networks besides the pod network, by the network's name. They are the VM's beside a NIC on the pod network:
// without one a launcher is a pod like others, whose identity is its own.
func secondNetworks(vmi *kubevirtv1.VirtualMachineInstance) map[string]types.NamespacedName {
	out := map[string]types.NamespacedName{}
	if vmi == nil || !hasPodNetwork(vmi) {
		return out
	}
	for i := range vmi.Spec.Networks {
		n := &vmi.Spec.Networks[i]
		if n.Multus == nil || n.Multus.Default || n.Name == podNetwork {
			continue
		}
		out[n.Name] = definitionOf(vmi, n.Multus)
	}
	return out
}

// networksOf are the networks on which a VMI, nil if there is none, has NICs of Godwit's, or may have.
func networksOf(vmi *kubevirtv1.VirtualMachineInstance) []string {
	if vmi == nil || !hasPodNetwork(vmi) {
		return nil
	}
	return append(slices.Collect(maps.Keys(secondNetworks(vmi))), podNetwork)
}

// definitionOf names the NetworkAttachmentDefinition of a VMI's network: "NAMESPACE/NAME", or the name of one in the VMI's namespace.
func definitionOf(vmi *kubevirtv1.VirtualMachineInstance, n *kubevirtv1.MultusNetwork) types.NamespacedName {
	if namespace, name, ok := strings.Cut(n.NetworkName, "/"); ok {
		return types.NamespacedName{Namespace: namespace, Name: name}
	}
	return types.NamespacedName{Namespace: vmi.Namespace, Name: n.NetworkName}
}

// ensureSecond is the Port of a VMI's NIC on a second network; nil if there is none (yet), because it is another plugin's, or another VM's of the name is being deleted.
func (r *vmReconciler) ensureSecond(ctx context.Context, vmi *kubevirtv1.VirtualMachineInstance, network string, key types.NamespacedName, ports []*v1alpha1.Port) (*v1alpha1.Port, error) {
	port := portFor(vmi, network, ports)
	taken := slices.ContainsFunc(ports, func(p *v1alpha1.Port) bool { return p.Spec.Target.Network == network })
	if port != nil || taken || vmi.DeletionTimestamp != nil || vmi.IsFinal() {
		return port, nil
	}
	conf, err := r.nads.config(ctx, key)
	if errors.Is(err, errBadNAD) {
		r.events.Eventf(concerned(vmi), nil, corev1.EventTypeWarning, v1alpha1.ReasonInvalid, "MakePort", "network %s: %v", network, err)
		return nil, nil
	}
	if err != nil || !conf.Ours {
		return nil, err
	}
	return r.makeSecond(ctx, vmi, network, conf)
}

// secondNames are what the Port of a VMI's NIC on a second network may be called, the best first. Names of networks may have capital letters, underscores, and a dash at the end, which those
// of objects may not.
func secondNames(vmi, network string) []string {
	both := vmi + "-" + network
	if len(validation.IsDNS1123Subdomain(both)) > 0 {
		return []string{longName(vmi, network)}
	}
	return []string{both, longName(both, network)}
}

// makeSecond creates the Port of a VMI's NIC on a second network: under the names of both, or under a longer one where that is taken or is no name.
func (r *vmReconciler) makeSecond(ctx context.Context, vmi *kubevirtv1.VirtualMachineInstance, network string, conf nad.Config) (*v1alpha1.Port, error) {
	names := secondNames(vmi.Name, network)
	for _, name := range names {
		port := newPort(vmi, network)
		if port.Name = name; conf.Subnet != "" { // held to the Subnets that are for its namespace, as by the annotation of a template
			port.Spec.Subnet, port.Annotations = conf.Subnet, map[string]string{v1alpha1.SubnetAnnotation: conf.Subnet}
		}
		err := r.api.Create(ctx, port)
		if err == nil {
			r.log.Info("Port made", "port", port.Namespace+"/"+port.Name, "vm", vmi.Name, "network", network)
			return port, nil
		}
		if apierrors.IsInvalid(err) {
			r.events.Eventf(concerned(vmi), nil, corev1.EventTypeWarning, "PortRefused", "MakePort", "network %s: %v: the VM has no NIC there; correct the NetworkAttachmentDefinition", network, err)
			return nil, nil
		}
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil, nil // the VM goes too
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create the Port of VM %s/%s on network %s: %w", vmi.Namespace, vmi.Name, network, err)
		}
		var has v1alpha1.Port
		if err := r.api.Get(ctx, client.ObjectKeyFromObject(port), &has); err != nil || vmKey(&has) == client.ObjectKeyFromObject(vmi) && has.Spec.Target.Network == network {
			return nil, client.IgnoreNotFound(err) // the cache is behind; that Port asks for this VM again
		}
	}
	r.events.Eventf(concerned(vmi), nil, corev1.EventTypeWarning, "PortNameTaken", "MakePort",
		"Ports %s are others': the VM has no NIC on network %s; make a Port for it under another name, or delete one of them", strings.Join(names, " and "), network)
	return nil, nil
}

// launcherNICs are a launcher's interfaces on second networks: those that it has been told of, and those by which it may attach now.
func (r *vmReconciler) launcherNICs(ctx context.Context, o observed, pod *corev1.Pod, may map[string]v1alpha1.Activation) ([]v1alpha1.NIC, error) {
	told := identityOf(pod).NICs
	var out []v1alpha1.NIC
	for _, network := range slices.Sorted(maps.Keys(o.ports)) {
		if network == podNetwork {
			continue
		}
		if i := slices.IndexFunc(told, func(n v1alpha1.NIC) bool { return n.Network == network }); i >= 0 {
			out = append(out, told[i])
			continue
		}
		activation, ok := may[network]
		if !ok || !o.agreed(o.ports[network]) {
			continue
		}
		alone := o
		alone.pods = nil // what they were told is the MTU of the first interface
		id, err := r.identity(ctx, alone, o.ports[network])
		if err != nil {
			return nil, err
		}
		nic := v1alpha1.NICOf(ident.LauncherInterface(network), network, id)
		if nic.Activation = activation; nic.MTU == 0 {
			continue // no node has an agent yet
		}
		for _, other := range o.pods {
			for _, n := range identityOf(other).NICs {
				if n.Network == network {
					nic.MTU = n.MTU // a guest would not notice another while it moves
				}
			}
		}
		out = append(out, nic)
	}
	return out, nil
}

// journeys tells which of a VM's ports take connections along, and says whether that was not known, and for how long that stays.
func (r *vmReconciler) journeys(vm types.NamespacedName, o observed, d migration.Decision) (news bool, longest journey) {
	if o.rows[podNetwork] == nil {
		news = r.policies.setJourney(ident.VMPort(vm.Namespace, vm.Name, podNetwork), journey{})
	}
	for _, p := range d.Ports {
		j := r.policies.handover.journey(p.Want, o.moved(p), o.env.Now)
		news = r.policies.setJourney(p.Name, j) || news
		longest.left = sooner(longest.left, j.left)
	}
	return news, longest
}

// sayWithoutPodNetwork tells whoever starts a VM that its NICs on second networks have no Ports.
func (r *vmReconciler) sayWithoutPodNetwork(ctx context.Context, vmi *kubevirtv1.VirtualMachineInstance) error {
	if vmi.Status.Phase != kubevirtv1.Scheduling {
		return nil
	}
	for i := range vmi.Spec.Networks {
		n := &vmi.Spec.Networks[i]
		if n.Multus == nil || n.Multus.Default {
			continue
		}
		conf, err := r.nads.config(ctx, definitionOf(vmi, n.Multus))
		if err == nil && conf.Ours {
			r.events.Eventf(vmi, nil, corev1.EventTypeWarning, "PodNetworkMissing", "MakePort",
				"network %s: a VM has NICs on second networks of Godwit's beside one on the pod network: add that", n.Name)
		}
		if err != nil && !errors.Is(err, errBadNAD) {
			return err
		}
	}
	return nil
}
