package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// systemNamespace is where Godwit runs unless it was installed elsewhere.
const systemNamespace = "godwit-system"

func (s *session) checkCommand() *cobra.Command {
	var format string
	probe := true
	cmd := &cobra.Command{
		Use: "check VM", Args: cobra.ExactArgs(1), ValidArgsFunction: s.complete(vms),
		Short: "Whether a VM can move, and whether anybody would notice",
		Long: `check looks at what the API has of a VM before it moves: whether KubeVirt can migrate it, how its NICs are bound, whether its ports are attached, which nodes can take it, which
NetworkPolicies isolate it and what becomes of its connections then, which Services lead to it on its node alone, and how it went the last time.
And it has the agents look, which needs the right to create pods/exec in the namespace of Godwit: the one on the VM's node sends a packet as long as the VM's to each node that can take it, from ovn0 to
ovn0; each of these nodes' asks its ovn-controller for its release, and so is ovn-northd where it is Godwit's pod: whether both have what a migration needs, and are of one series.
A line each: ok, warn (somebody would notice) or fail (it does not move), and what to do. It exits with 1 if any line is not ok.`,
		Example: "  kubectl ovn migration check web1\n  kubectl ovn migration check web1 --probe=false",
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("-o %s: json is all that there is", format)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			p, err := c.preflight(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if probe {
				c.probe(cmd.Context(), &p)
				c.askReleases(cmd.Context(), &p)
			}
			d := p.judge()
			if format == "json" {
				err = d.json(cmd.OutOrStdout())
			} else {
				d.write(folded(cmd.OutOrStdout()))
			}
			return errors.Join(err, d.moves())
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json")
	cmd.Flags().BoolVar(&probe, "probe", true, "send packets through the tunnels, and ask OVN for its releases")
	return cmd
}

// preflight reads what is judged.
func (c cluster) preflight(ctx context.Context, vm string) (p preflight, err error) {
	p.now, p.isolation = time.Now(), c.readIsolation(ctx)
	p.vmi = &kubevirtv1.VirtualMachineInstance{}
	err = c.api.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: vm}, p.vmi)
	if apierrors.IsNotFound(err) {
		return p, fmt.Errorf("no VM %s runs in namespace %s: kubectl get vmi -n %s", vm, c.namespace, c.namespace)
	}
	if err != nil {
		return p, fmt.Errorf("read VMI %s/%s: %w", c.namespace, vm, err)
	}
	var ports v1alpha1.PortList
	var pods corev1.PodList
	var services corev1.ServiceList
	var nodes corev1.NodeList
	for _, l := range []struct {
		list client.ObjectList
		what string
		in   []client.ListOption
	}{
		{&ports, "Ports", []client.ListOption{client.InNamespace(c.namespace)}}, {&pods, "pods", []client.ListOption{client.InNamespace(c.namespace)}},
		{&services, "Services", []client.ListOption{client.InNamespace(c.namespace)}}, {&nodes, "Nodes", nil},
	} {
		if err := c.api.List(ctx, l.list, l.in...); err != nil {
			return p, fmt.Errorf("list %s: %w", l.what, explained(err))
		}
	}
	p.services, p.nodes = services.Items, nodes.Items
	p.ports, p.mtu = interfacesOf(ports.Items, vm), toldMTU(pods.Items, p.vmi)
	if p.agents, err = c.agents(ctx); err != nil {
		return p, err
	}
	l := listing{cluster: c, vm: vm}
	moves, err := l.list(ctx)
	if err == nil && len(moves.Items) > 0 {
		p.last = &moves.Items[len(moves.Items)-1]
	}
	return p, err
}

// agents are the nodes on which an agent is ready.
func (c cluster) agents(ctx context.Context) (map[string]bool, error) {
	var pods corev1.PodList
	if err := c.api.List(ctx, &pods, client.InNamespace(c.system), client.MatchingLabels{labelName: "godwit", labelComponent: agentComponent}); err != nil {
		return nil, fmt.Errorf("list the agents in namespace %s: %w", c.system, err)
	}
	if len(pods.Items) == 0 {
		return nil, fmt.Errorf("there is no agent of Godwit in namespace %s: --system-namespace says where it runs", c.system)
	}
	ready := map[string]bool{}
	for i := range pods.Items {
		for _, cond := range pods.Items[i].Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				ready[pods.Items[i].Spec.NodeName] = true
			}
		}
	}
	return ready, nil
}

// write prints all lines.
func (d *diagnosis) write(w io.Writer) {
	for _, l := range d.Checks {
		l.write(w)
	}
}

// moves is an error if a VM would not move, or somebody would notice.
func (d *diagnosis) moves() error {
	switch {
	case d.Failures > 0:
		return fmt.Errorf("it does not move: %d of %d checks failed", d.Failures, len(d.Checks))
	case d.Warnings > 0:
		return fmt.Errorf("somebody would notice: %d of %d checks warn", d.Warnings, len(d.Checks))
	}
	return nil
}
