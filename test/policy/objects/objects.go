// Package objects says what NetworkPolicies are about by the API's objects alone. It shares nothing with the controller, which is held to it.
package objects

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// Objects are all objects of the API that have to do with policies.
type Objects struct {
	Namespaces []corev1.Namespace
	Policies   []networkingv1.NetworkPolicy
	Nodes      []corev1.Node
	Pods       []corev1.Pod
	Ports      []v1alpha1.Port
	// VMIs are none where KubeVirt is not installed.
	VMIs []kubevirtv1.VirtualMachineInstance
}

// Read lists them, all kinds at once.
func Read(ctx context.Context, api client.Reader) (Objects, error) {
	var namespaces corev1.NamespaceList
	var policies networkingv1.NetworkPolicyList
	var nodes corev1.NodeList
	var pods corev1.PodList
	var ports v1alpha1.PortList
	var vmis kubevirtv1.VirtualMachineInstanceList
	g, ctx := errgroup.WithContext(ctx)
	for _, list := range []client.ObjectList{&namespaces, &policies, &nodes, &pods, &ports} {
		g.Go(func() error {
			if err := api.List(ctx, list); err != nil {
				return fmt.Errorf("list %T: %w", list, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		if err := api.List(ctx, &vmis); err != nil && !meta.IsNoMatchError(err) {
			return fmt.Errorf("list VirtualMachineInstances: %w", err)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return Objects{}, err
	}
	return Objects{namespaces.Items, policies.Items, nodes.Items, pods.Items, ports.Items, vmis.Items}, nil
}

// VMI is the instance of a VM that a Port belongs to, nil if it has none.
func (o Objects) VMI(port *v1alpha1.Port) *kubevirtv1.VirtualMachineInstance {
	for i := range o.VMIs {
		if v := &o.VMIs[i]; v.Namespace == port.Namespace && v.Name == port.Spec.Target.Name {
			return v
		}
	}
	return nil
}

// Snapshot is what policies see of the objects. Which ports take connections along is not in the API.
func (o Objects) Snapshot() policy.Snapshot {
	s := policy.Snapshot{Namespaces: map[string]map[string]string{}}
	for i := range o.Namespaces {
		s.Namespaces[o.Namespaces[i].Name] = o.Namespaces[i].Labels
	}
	for i := range o.Policies {
		s.Policies = append(s.Policies, &o.Policies[i])
	}
	for i := range o.Nodes {
		if h, ok := host(&o.Nodes[i]); ok {
			s.Hosts = append(s.Hosts, h)
		}
	}
	for i := range o.Pods {
		s.Pods = append(s.Pods, pod(&o.Pods[i])...)
	}
	for i := range o.Ports {
		port := &o.Ports[i]
		if vmi := o.VMI(port); vmi != nil {
			s.Pods = append(s.Pods, vm(port, vmi))
		}
	}
	return s
}

// host is a node that has its addresses on the join network.
func host(node *corev1.Node) (policy.Host, bool) {
	join, err := v1alpha1.ParseJoin(node.Annotations[v1alpha1.JoinAnnotation])
	if err != nil {
		return policy.Host{}, false
	}
	h := policy.Host{Node: node.Name, Own: addresses(join.IPs), Clients: addresses(join.Clients)}
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil { // a name is no address
			h.IPs = append(h.IPs, ip)
		}
	}
	return h, true
}

// pod are the interfaces of one that has its addresses, a node, and interfaces of its own: a VM's launcher has none.
func pod(p *corev1.Pod) []policy.Pod {
	id, err := v1alpha1.ParseIdentity(p.Annotations[v1alpha1.IdentityAnnotation])
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	if err != nil || id.PodUID != string(p.UID) || id.VMI != nil || p.Spec.HostNetwork || p.Spec.NodeName == "" || ended {
		return nil
	}
	first := policy.Pod{Port: ident.PodPort(p.Namespace, p.Name, ident.DefaultNetwork), Namespace: p.Namespace, Labels: p.Labels, IPs: addresses(id.IPs)}
	for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range containers {
			for _, port := range containers[i].Ports {
				first.Ports = append(first.Ports, policy.PodPort{Name: port.Name, Protocol: port.Protocol, Number: port.ContainerPort})
			}
		}
	}
	out := []policy.Pod{first}
	for _, nic := range id.NICs {
		second := first
		second.Port, second.IPs = ident.PodPort(p.Namespace, p.Name, nic.Interface), addresses(nic.IPs)
		out = append(out, second)
	}
	return out
}

// vm is a VM's interface, with its VMI's labels.
func vm(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance) policy.Pod {
	out := policy.Pod{Port: ident.VMPort(port.Namespace, port.Spec.Target.Name, port.Spec.Target.Network), Namespace: vmi.Namespace, Labels: vmi.Labels}
	for _, text := range port.Status.IPs {
		if ip, err := netip.ParseAddr(text); err == nil {
			out.IPs = append(out.IPs, ip)
		}
	}
	onPodNetwork := map[string]bool{}
	for i := range vmi.Spec.Networks {
		onPodNetwork[vmi.Spec.Networks[i].Name] = vmi.Spec.Networks[i].Pod != nil
	}
	for i := range vmi.Spec.Domain.Devices.Interfaces {
		nic := &vmi.Spec.Domain.Devices.Interfaces[i]
		for _, p := range nic.Ports {
			if onPodNetwork[nic.Name] && p.Name != "" {
				out.Ports = append(out.Ports, policy.PodPort{Name: p.Name, Protocol: corev1.Protocol(p.Protocol), Number: p.Port})
			}
		}
	}
	return out
}

func addresses(prefixes []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range prefixes {
		out = append(out, p.Addr())
	}
	return out
}
