package kubectl

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

func (s *session) portCommand() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use: "port VM|POD", Args: cobra.ExactArgs(1), ValidArgsFunction: s.complete(vmsAndPods),
		Short: "Who a VM or a pod is in the network, and where",
		Long: `port tells the addresses, the logical port and the place of each network interface of a VM, or of a pod: what the API has of it. Of a VM also its launcher pods, which of
them may attach, and its last migration. With -o wide also what OVN has of it, where OVN runs as Godwit's pods: its row and what it asks for, the chassis to which it is bound, its interface on the node,
port groups, the NetworkPolicies that permit it something, and the load balancers that it is an endpoint of.`,
		Example: "  kubectl ovn port web1\n  kubectl ovn port web1 -o wide",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if f == asJSON || f == asYAML {
				return fmt.Errorf("-o %s is not of this command: kubectl get ports,pods -o %s has what the API knows", f, f)
			}
			return c.port(cmd.Context(), cmd.OutOrStdout(), args[0], f)
		},
	}
	cmd.Flags().VarP(&f, "output", "o", "wide: what OVN has of it too")
	return cmd
}

// port prints what is known of a VM, or else of a pod.
func (c cluster) port(ctx context.Context, w io.Writer, name string, f format) error {
	var list v1alpha1.PortList
	if err := c.api.List(ctx, &list, client.InNamespace(c.namespace)); err != nil {
		return fmt.Errorf("list the Ports in namespace %s: %w", c.namespace, explained(err))
	}
	if ports := portsOf(list.Items, name); len(ports) > 0 {
		return c.vmPorts(ctx, w, ports, f)
	}
	var pod corev1.Pod
	err := c.api.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: name}, &pod)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("namespace %s has neither a Port of a VM %s nor a pod of that name: kubectl get ports,pods -n %s", c.namespace, name, c.namespace)
	}
	if err != nil {
		return fmt.Errorf("read pod %s/%s: %w", c.namespace, name, err)
	}
	return c.podPorts(ctx, w, &pod, f)
}

// podPorts prints a pod's interfaces.
func (c cluster) podPorts(ctx context.Context, w io.Writer, pod *corev1.Pod, f format) error {
	rows := append([][]string{{"pod", pod.Namespace + "/" + pod.Name}}, podRows(pod)...)
	id, err := identityOf(pod)
	if err != nil && f == wide {
		return err
	}
	if err == nil { // else that is among the rows
		for i, nic := range nicsOf(id) {
			e := nicEnd(pod, id, nic)
			if i > 0 {
				rows = append(rows, nicRows(nic, e.port)...)
			}
			if f != wide {
				continue
			}
			if rows, err = c.appendInside(ctx, rows, e); err != nil {
				return err
			}
		}
	}
	(&table{out: w}).rows(rows...)
	return nil
}

// vmPorts prints a VM's Ports, its launchers and its last migration.
func (c cluster) vmPorts(ctx context.Context, w io.Writer, ports []v1alpha1.Port, f format) error {
	vm := ports[0].Spec.Target.Name
	var pods corev1.PodList
	if err := c.api.List(ctx, &pods, client.InNamespace(c.namespace)); err != nil {
		return fmt.Errorf("list the pods in namespace %s: %w", c.namespace, err)
	}
	l := listing{cluster: c, vm: vm}
	moves, err := l.list(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"VM", c.namespace + "/" + vm}}
	for i := range ports {
		rows = append(rows, portRows(&ports[i])...)
		if f != wide || ports[i].Status.MAC == "" || taken(&ports[i]) {
			continue
		}
		e, err := portEnd(&ports[i])
		if err != nil {
			return err
		}
		if rows, err = c.appendInside(ctx, rows, e); err != nil {
			return err
		}
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; launches(pod, vm) {
			rows = append(rows, []string{"launcher", launcherText(pod)})
		}
	}
	if n := len(moves.Items); n > 0 {
		pm := &moves.Items[n-1]
		rows = append(rows, []string{"last migration", fmt.Sprintf("%s, %s → %s, %s, interruption %s", pm.Name, pm.Spec.Source.Node, pm.Spec.Target.Node,
			story{pm}.outcome(), interruption(pm.Status.Interruption))})
	}
	(&table{out: w}).rows(rows...)
	return nil
}

// appendInside adds what OVN has of a port.
func (c cluster) appendInside(ctx context.Context, rows [][]string, e *end) ([][]string, error) {
	var addresses []netip.Addr
	for _, p := range e.addresses {
		addresses = append(addresses, p.Addr())
	}
	in, err := c.inside(ctx, e.port, e.node, addresses)
	return append(rows, in.tell()...), err
}

// portRows tell a Port.
func portRows(p *v1alpha1.Port) [][]string {
	st := &p.Status
	where := string(st.Phase)
	if st.Node != "" {
		where += " on " + st.Node
	}
	rows := [][]string{
		{"network", p.Spec.Target.Network + ", Port " + p.Name},
		{"  logical port", string(ident.VMPort(p.Namespace, p.Spec.Target.Name, p.Spec.Target.Network))},
		{"  addresses", filled(strings.Join(st.IPs, " "))},
		{"  MAC", filled(st.MAC)},
		{"  subnet", filled(st.Subnet)},
		{"  phase", filled(where)},
	}
	if st.EgressNode != "" {
		rows = append(rows, []string{"  leaves through", st.EgressNode})
	}
	if len(p.Spec.AllowedAddresses) > 0 {
		rows = append(rows, []string{"  may send from", strings.Join(p.Spec.AllowedAddresses, " ")})
	}
	if p.Spec.PortSecurity == v1alpha1.PortSecurityOff {
		rows = append(rows, []string{"  port security", "off: any address"})
	}
	if ready := meta.FindStatusCondition(st.Conditions, v1alpha1.ConditionReady); ready == nil {
		rows = append(rows, []string{"  ready", "not known: is godwit-controller running?"})
	} else if ready.Status != metav1.ConditionTrue {
		rows = append(rows, []string{"  ready", fmt.Sprintf("%s, %s: %s", ready.Status, ready.Reason, ready.Message)})
	}
	return rows
}

// launches says whether a pod is a launcher of a VM, finished ones left out.
func launches(pod *corev1.Pod, vm string) bool {
	owner := metav1.GetControllerOfNoCopy(pod)
	return owner != nil && owner.Kind == v1alpha1.KindVirtualMachineInstance && owner.Name == vm && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// launcherText is a launcher, and whether it may attach.
func launcherText(pod *corev1.Pod) string {
	text := fmt.Sprintf("%s on %s, %s", pod.Name, filled(pod.Spec.NodeName), pod.Status.Phase)
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	switch {
	case err != nil:
		return text + ", has no identity yet: kubectl describe pod " + pod.Name
	case id.Attach == nil:
		return text + ", may not attach: the ports are for another pod, or not prepared yet"
	}
	return text + ", may attach on " + id.Attach.Chassis
}

// nicRows tell a pod's interface on a second network.
func nicRows(nic v1alpha1.NIC, port string) [][]string {
	return [][]string{
		{"interface", nic.Interface + ", network " + nic.Network}, {"  logical port", port}, {"  addresses", prefixes(nic.IPs)}, {"  MAC", nic.MAC.String()}, {"  subnet", nic.Subnet},
		{"  MTU", fmt.Sprint(nic.MTU)},
	}
}

// podRows tell a pod, and its interface on the pod network.
func podRows(pod *corev1.Pod) [][]string {
	if pod.Spec.HostNetwork {
		return [][]string{{"network", "the host's, of node " + filled(pod.Spec.NodeName)}}
	}
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		return [][]string{{"identity", err.Error() + ": kubectl describe pod " + pod.Name}}
	}
	port := string(ident.PodPort(pod.Namespace, pod.Name, ident.DefaultNetwork))
	if id.VMI != nil {
		port = string(ident.VMPort(pod.Namespace, id.VMI.Name, ident.DefaultNetwork)) + ", of VM " + id.VMI.Name
	}
	var gateways []string
	for _, g := range id.Gateways {
		gateways = append(gateways, g.String())
	}
	return [][]string{
		{"logical port", port}, {"addresses", prefixes(id.IPs)}, {"MAC", id.MAC.String()}, {"subnet", id.Subnet}, {"gateways", strings.Join(gateways, " ")},
		{"MTU", fmt.Sprint(id.MTU)}, {"node", filled(pod.Spec.NodeName)},
	}
}

func prefixes(list []netip.Prefix) string {
	var all []string
	for _, p := range list {
		all = append(all, p.String())
	}
	return strings.Join(all, " ")
}
