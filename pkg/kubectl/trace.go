package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// tracks is how often a packet may meet connection tracking: to each time ovn-trace is told that the connection is new, or it takes it for one that is established.
const tracks = 16

// traceFlags are what `kubectl ovn trace` is asked for besides.
type traceFlags struct {
	raw, four, six bool
}

func (s *session) traceCommand() *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use: "trace SRC DST [tcp|udp|icmp] [PORT]", Args: cobra.RangeArgs(2, 4), ValidArgsFunction: s.complete(traceable),
		Short: "What the network would do with the first packet of a connection",
		Long: `trace follows the first packet of a connection from a pod or a VM through OVN's logical flows, by ovn-trace in a pod of ovn-central, and tells where it goes, and which load balancer and which
NetworkPolicy had a word. It sends nothing.

SRC is a pod or VM, [NAMESPACE/]NAME; DST one too, or a Service, or an address. Where a name is several of them, vm:NAME, pod:NAME or service:NAME says which. Without a protocol it is a ping, to a Service its
first port. Of the endpoints of a Service ovn-trace takes any one, each time anew.
It exits with 0 if the packet arrives, or leaves the cluster, and with 1 if it does not. It tells what OVN has been asked for: not whether the tunnels carry, nor what becomes of the packet in the pod, nor outside of
the cluster.`,
		Example: "  kubectl ovn trace web db tcp 5432\n  kubectl ovn trace shop/web1 service:api\n  kubectl ovn trace web 192.0.2.77 tcp 443 --raw",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			return c.trace(cmd.Context(), cmd.OutOrStdout(), args, f)
		},
	}
	cmd.Flags().BoolVar(&f.raw, "raw", false, "print what ovn-trace says")
	cmd.Flags().BoolVarP(&f.four, "ipv4", "4", false, "by IPv4, which it is without a flag where both ends have it")
	cmd.Flags().BoolVarP(&f.six, "ipv6", "6", false, "by IPv6")
	cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6")
	return cmd
}

func (c cluster) trace(ctx context.Context, w io.Writer, args []string, f traceFlags) error {
	from, err := c.find(ctx, args[0])
	if err != nil {
		return err
	}
	to, err := c.find(ctx, args[1])
	if err != nil {
		return err
	}
	m, err := connection(from, to, args[2:], f)
	if err != nil {
		return err
	}
	nobody, err := c.vacant(ctx, to)
	if err != nil {
		return err
	}
	if nobody && !f.raw {
		return fmt.Errorf("dropped: %s is of a Subnet, and no pod, VM or Service has it", to.name)
	}
	in, err := c.member(ctx, southbound)
	if err != nil {
		return err
	}
	command := []string{"ovn-trace", "--no-leader-only"}
	for range tracks {
		command = append(command, "--ct=new")
	}
	said, err := output(ctx, c.containers, in, append(command, m.expression())...)
	if err != nil {
		return err
	}
	if f.raw {
		_, err := io.WriteString(w, said)
		return err
	}
	t := traced{flow: m, from: from, to: to, course: parseCourse(said)}
	if t.acls, err = c.namedACLs(ctx, in, t.course.acls()); err != nil {
		return err
	}
	if err := c.context(ctx, &t); err != nil {
		return err
	}
	out := folded(w)
	for _, line := range t.lines() {
		say(out, "%s", line)
	}
	return t.outcome()
}

// connection is the packet between two ends.
func connection(from, to end, args []string, f traceFlags) (microflow, error) {
	m := microflow{inport: from.port, srcMAC: from.mac, protocol: protocolICMP}
	if from.port == "" {
		return m, fmt.Errorf("%s is neither a pod nor a VM: a packet is traced from one of these", from.name)
	}
	src, dst, err := addresses(from, to, f)
	if err != nil {
		return m, err
	}
	m.src, m.dst = src.Addr(), dst.Addr()
	m.dstMAC = to.mac
	if to.mac == nil || from.subnet != to.subnet {
		m.dstMAC = ident.GatewayMAC(ident.SubnetSwitch(from.subnet))
	}
	if to.service != nil && len(args) == 0 && len(to.service.Spec.Ports) > 0 {
		p := to.service.Spec.Ports[0]
		args = []string{map[corev1.Protocol]string{"": protocolTCP, corev1.ProtocolTCP: protocolTCP, corev1.ProtocolUDP: protocolUDP}[p.Protocol], strconv.Itoa(int(p.Port))}
	}
	if len(args) > 0 {
		m.protocol = args[0]
	}
	switch {
	case m.protocol == protocolICMP && len(args) > 1:
		return m, errors.New("icmp has no port: leave it out")
	case m.protocol == protocolICMP:
		return m, nil
	case m.protocol != protocolTCP && m.protocol != protocolUDP:
		return m, fmt.Errorf("%q is none of tcp, udp and icmp", m.protocol)
	case len(args) < 2:
		return m, fmt.Errorf("%s needs a port: kubectl ovn trace SRC DST %s PORT", m.protocol, m.protocol)
	}
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil || port == 0 {
		return m, fmt.Errorf("%q is no port: a number from 1 to 65535", args[1])
	}
	m.port = uint16(port)
	return m, nil
}

// addresses are those of both ends, of IPv4 where nothing else is asked for and both have it.
func addresses(from, to end, f traceFlags) (src, dst netip.Prefix, err error) {
	bits := bitsIPv4
	_, ok := from.address(bits)
	if _, too := to.address(bits); f.six || !f.four && (!ok || !too) {
		bits = bitsIPv6
	}
	src, ok = from.address(bits)
	dst, too := to.address(bits)
	if !ok || !too {
		return src, dst, fmt.Errorf("%s and %s have no addresses of one family, %s", from.name, to.name, map[int]string{bitsIPv4: "IPv4", bitsIPv6: "IPv6"}[bits])
	}
	return src, dst, nil
}

// vacant says whether an address is of a Subnet and nobody's: what is sent there ends in a question that nobody answers.
func (c cluster) vacant(ctx context.Context, to end) (bool, error) {
	if to.port != "" || to.service != nil {
		return false, nil
	}
	var subnets v1alpha1.SubnetList
	if err := c.api.List(ctx, &subnets); err != nil {
		return false, fmt.Errorf("list the Subnets: %w", explained(err))
	}
	a := to.addresses[0].Addr()
	for i := range subnets.Items {
		s := &subnets.Items[i]
		if slices.Contains(s.Spec.Gateways, a.String()) {
			return false, nil
		}
		for _, text := range s.Spec.CIDRs {
			p, err := netip.ParsePrefix(text)
			if err == nil && p.Contains(a) && a != p.Masked().Addr().Next() {
				return true, nil
			}
		}
	}
	return false, nil
}

// namedACLs are the rows of NB that logical flows come from, by the logical flow's first digits. northd writes the first digits of the ACL into the flow (stage-hint).
func (c cluster) namedACLs(ctx context.Context, in container, flows []logicalFlow) (map[string]row, error) {
	out := map[string]row{}
	if len(flows) == 0 {
		return out, nil
	}
	ask := []string{"ovn-sbctl", "--no-leader-only", "--format=json", "--columns=_uuid,external_ids", "list", "Logical_Flow"}
	for _, f := range flows {
		ask = append(ask, f.id)
	}
	found, err := c.rows(ctx, in, ask)
	if err != nil {
		return nil, err
	}
	hints := map[string]string{}
	ask = []string{"ovn-nbctl", "--no-leader-only", "--format=json", "--columns=_uuid,action,direction,match,external_ids", "list", "ACL"}
	for _, r := range found {
		if hint := r.texts("external_ids")["stage-hint"]; hint != "" {
			hints[r.text("_uuid")[:8]] = hint
			ask = append(ask, hint)
		}
	}
	if len(hints) == 0 {
		return out, nil
	}
	in.name = northbound.container
	if found, err = c.rows(ctx, in, ask); err != nil {
		return nil, err
	}
	for _, r := range found {
		for flow, hint := range hints {
			if r.text("_uuid")[:8] == hint {
				out[flow] = r
			}
		}
	}
	return out, nil
}

// rows are what a program prints with --format=json.
func (c cluster) rows(ctx context.Context, in container, args []string) ([]row, error) {
	said, err := output(ctx, c.containers, in, args...)
	if err != nil {
		return nil, err
	}
	return parseRows(said)
}

// context adds what the API knows of where the packet came to.
func (c cluster) context(ctx context.Context, t *traced) error {
	port := ident.PortName(t.course.output())
	if l, _ := t.course.last(); port == "" && l != nil {
		port = ident.PortName(l.outport) // where it was dropped on its way
	}
	var err error
	if ns, vm, _, ok := ident.ParseVMPort(port); ok {
		t.reached, err = c.vmEnd(ctx, client.ObjectKey{Namespace: ns, Name: vm})
	} else if ns, pod, _, ok := ident.ParsePodPort(port); ok {
		t.reached, err = c.podEnd(ctx, client.ObjectKey{Namespace: ns, Name: pod})
	}
	if err != nil {
		return err
	}
	if t.reached == nil && t.to.port != "" {
		t.reached = &t.to
	}
	isolated, direction := t.isolated()
	if isolated == nil {
		return nil
	}
	var list networkingv1.NetworkPolicyList
	if err := c.api.List(ctx, &list, client.InNamespace(isolated.namespace)); err != nil {
		return fmt.Errorf("list the NetworkPolicies in namespace %s: %w", isolated.namespace, err)
	}
	t.isolating = isolating(list.Items, isolated.labels, direction)
	return nil
}

// isolating are the policies that isolate who has the labels in a direction.
func isolating(all []networkingv1.NetworkPolicy, of map[string]string, direction networkingv1.PolicyType) []string {
	var out []string
	for i := range all {
		selector, err := metav1.LabelSelectorAsSelector(&all[i].Spec.PodSelector)
		if err == nil && selector.Matches(labels.Set(of)) && slices.Contains(all[i].Spec.PolicyTypes, direction) {
			out = append(out, all[i].Namespace+"/"+all[i].Name)
		}
	}
	slices.Sort(out)
	return out
}
