package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// end is one of the two that a trace is between.
type end struct {
	// name is for people: "pod shop/web", or an address.
	name string
	// port, node, subnet and mac are a pod's or a VM's; egress is the node through which a VM leaves the cluster, where it has one.
	port, node, subnet, egress string
	mac                        net.HardwareAddr
	// namespace and labels are what NetworkPolicies go by; a VM's are its launcher's.
	namespace string
	labels    map[string]string
	// addresses are at most one a family, with the Subnet's length where it is a pod.
	addresses []netip.Prefix
	// service is set for a Service.
	service *corev1.Service
}

// Lengths of addresses by family, in bits.
const (
	bitsIPv4 = 32
	bitsIPv6 = 128
)

// address is that of a family.
func (e end) address(bits int) (netip.Prefix, bool) {
	i := slices.IndexFunc(e.addresses, func(p netip.Prefix) bool { return p.Addr().BitLen() == bits })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return e.addresses[i], true
}

// End kinds, as a word before the name: vm:shop/web1.
const (
	kindVM      = "vm"
	kindPod     = "pod"
	kindService = "service"
)

// find resolves a name, [KIND:][NAMESPACE/]NAME, or an address. Without a kind it must be the name of one VM, pod or Service.
func (c cluster) find(ctx context.Context, text string) (end, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return c.at(ctx, a.Unmap())
	}
	kind, rest, said := strings.Cut(text, ":")
	if !said {
		kind, rest = "", text
	}
	key := client.ObjectKey{Namespace: c.namespace, Name: rest}
	if ns, name, ok := strings.Cut(rest, "/"); ok {
		key = client.ObjectKey{Namespace: ns, Name: name}
	}
	look := map[string]func(context.Context, client.ObjectKey) (*end, error){kindVM: c.vmEnd, kindPod: c.podEnd, kindService: c.serviceEnd}
	if said && look[kind] == nil {
		return end{}, fmt.Errorf("%s: %q is none of vm, pod and service", text, kind)
	}
	var found []end
	for _, k := range []string{kindVM, kindPod, kindService} {
		if said && k != kind {
			continue
		}
		e, err := look[k](ctx, key)
		if err != nil {
			return end{}, err
		}
		if e != nil {
			found = append(found, *e)
		}
	}
	switch len(found) {
	case 0:
		return end{}, fmt.Errorf("namespace %s has no %s %s", key.Namespace, cmp.Or(kind, "VM, pod or Service"), key.Name)
	case 1:
		return found[0], nil
	}
	return end{}, fmt.Errorf("%s is %s as well as %s: say which, as vm:%s or service:%s", text, found[0].name, found[1].name, text, text)
}

// vmEnd is a VM's NIC on the pod network, or else its first that has an address; nil if there is none.
func (c cluster) vmEnd(ctx context.Context, key client.ObjectKey) (*end, error) {
	var ports v1alpha1.PortList
	if err := c.api.List(ctx, &ports, client.InNamespace(key.Namespace)); err != nil {
		return nil, fmt.Errorf("list the Ports in namespace %s: %w", key.Namespace, explained(err))
	}
	own := interfacesOf(ports.Items, key.Name)
	for i := range own {
		p := &own[i]
		if len(p.Status.IPs) == 0 {
			continue
		}
		e, err := portEnd(p)
		if err != nil {
			return nil, err
		}
		return e, c.label(ctx, e, p.Spec.Target.Name)
	}
	return nil, nil //nolint:nilnil // there is none
}

// label gives a VM's end the labels of its launcher.
func (c cluster) label(ctx context.Context, e *end, vm string) error {
	var pods corev1.PodList
	if err := c.api.List(ctx, &pods, client.InNamespace(e.namespace)); err != nil {
		return fmt.Errorf("list the pods in namespace %s: %w", e.namespace, err)
	}
	for i := range pods.Items {
		if launches(&pods.Items[i], vm) {
			e.labels = pods.Items[i].Labels
		}
	}
	return nil
}

func portEnd(p *v1alpha1.Port) (*end, error) {
	e := &end{
		name: fmt.Sprintf("VM %s/%s", p.Namespace, p.Spec.Target.Name), port: string(ident.VMPort(p.Namespace, p.Spec.Target.Name, p.Spec.Target.Network)),
		node: p.Status.Node, subnet: p.Status.Subnet, egress: p.Status.EgressNode, namespace: p.Namespace,
	}
	if network := p.Spec.Target.Network; network != ident.DefaultNetwork {
		e.name += ", network " + network
	}
	var err error
	if e.mac, err = net.ParseMAC(p.Status.MAC); err != nil {
		return nil, fmt.Errorf("Port %s/%s: %w", p.Namespace, p.Name, err)
	}
	for _, text := range p.Status.IPs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("Port %s/%s: %w", p.Namespace, p.Name, err)
		}
		e.addresses = append(e.addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	return e, nil
}

// podEnd is a pod on the pod network, nil if there is none of the name. A launcher pod is its VM.
func (c cluster) podEnd(ctx context.Context, key client.ObjectKey) (*end, error) {
	var pod corev1.Pod
	err := c.api.Get(ctx, key, &pod)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, fmt.Errorf("read pod %s: %w", key, err)
	}
	return podNIC(&pod)
}

// podNIC is a pod on the pod network.
func podNIC(pod *corev1.Pod) (*end, error) {
	id, err := identityOf(pod)
	if err != nil {
		return nil, err
	}
	return nicEnd(pod, id, nicsOf(id)[0]), nil
}

// identityOf is what a pod was told of its interfaces.
func identityOf(pod *corev1.Pod) (v1alpha1.Identity, error) {
	if pod.Spec.HostNetwork {
		return v1alpha1.Identity{}, fmt.Errorf("pod %s/%s is on the network of node %s, not on the pod network: trace to that node's address", pod.Namespace, pod.Name, pod.Spec.NodeName)
	}
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		return v1alpha1.Identity{}, fmt.Errorf("pod %s/%s has no address yet: %w", pod.Namespace, pod.Name, err)
	}
	return id, nil
}

// nicsOf are all interfaces of a pod, that on the pod network first: its link and its network are called as in the name of its port.
func nicsOf(id v1alpha1.Identity) []v1alpha1.NIC {
	return append([]v1alpha1.NIC{v1alpha1.NICOf(ident.DefaultNetwork, ident.DefaultNetwork, id)}, id.NICs...)
}

// nicEnd is one of them.
func nicEnd(pod *corev1.Pod, id v1alpha1.Identity, nic v1alpha1.NIC) *end {
	e := &end{
		name: "pod " + pod.Namespace + "/" + pod.Name, port: string(ident.PodPort(pod.Namespace, pod.Name, nic.Interface)), node: pod.Spec.NodeName, subnet: nic.Subnet,
		mac: net.HardwareAddr(nic.MAC), addresses: nic.IPs, namespace: pod.Namespace, labels: pod.Labels,
	}
	if id.VMI != nil {
		e.name, e.port = fmt.Sprintf("VM %s/%s", pod.Namespace, id.VMI.Name), string(ident.VMPort(pod.Namespace, id.VMI.Name, nic.Network))
	}
	if nic.Network != ident.DefaultNetwork {
		e.name += ", network " + nic.Network
	}
	return e
}

// serviceEnd is a Service with addresses in the cluster, nil if there is none.
func (c cluster) serviceEnd(ctx context.Context, key client.ObjectKey) (*end, error) {
	var s corev1.Service
	err := c.api.Get(ctx, key, &s)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, fmt.Errorf("read Service %s: %w", key, err)
	}
	e := &end{name: "Service " + key.String(), service: &s}
	for _, text := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil {
			e.addresses = append(e.addresses, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if len(e.addresses) == 0 {
		return nil, fmt.Errorf("Service %s has no address in the cluster (%s): trace to one of its endpoints, kubectl get endpointslices -n %s -l kubernetes.io/service-name=%s", key,
			cmp.Or(string(s.Spec.Type), "headless"), key.Namespace, key.Name)
	}
	return e, nil
}

// at is who has an address: a VM, a pod, a Service, or nobody that the API knows.
func (c cluster) at(ctx context.Context, a netip.Addr) (end, error) {
	has := func(e *end) bool {
		return slices.ContainsFunc(e.addresses, func(p netip.Prefix) bool { return p.Addr() == a })
	}
	var ports v1alpha1.PortList
	var pods corev1.PodList
	var services corev1.ServiceList
	for what, list := range map[string]client.ObjectList{"Ports": &ports, "pods": &pods, "Services": &services} {
		if err := c.api.List(ctx, list); err != nil {
			return end{}, fmt.Errorf("look for who has %s: list the %s of all namespaces: %w", a, what, explained(err))
		}
	}
	for i := range ports.Items {
		if len(ports.Items[i].Status.IPs) == 0 || taken(&ports.Items[i]) {
			continue
		}
		if e, err := portEnd(&ports.Items[i]); err == nil && has(e) {
			return *e, c.label(ctx, e, ports.Items[i].Spec.Target.Name)
		}
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		id, err := identityOf(pod)
		if err != nil {
			continue
		}
		for _, nic := range nicsOf(id) {
			if e := nicEnd(pod, id, nic); has(e) {
				return *e, nil
			}
		}
	}
	for i := range services.Items {
		s := &services.Items[i]
		if slices.Contains(s.Spec.ClusterIPs, a.String()) {
			return end{name: "Service " + s.Namespace + "/" + s.Name, service: s, addresses: []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}}, nil
		}
	}
	return end{name: a.String(), addresses: []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}}, nil
}
