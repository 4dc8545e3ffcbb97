package kubectl

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// completion are the words that an argument may be, after those that are there already.
type completion func(ctx context.Context, c cluster, args []string) []string

// complete completes arguments. What the API server does not tell is not offered.
func (s *session) complete(words completion) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		c, err := s.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all := slices.DeleteFunc(words(cmd.Context(), c, args), func(w string) bool { return !strings.HasPrefix(w, begun) })
		slices.Sort(all)
		return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
	}
}

// vms are the VMs of the namespace, by their Ports, for a command's first argument.
func vms(ctx context.Context, c cluster, args []string) []string {
	var ports v1alpha1.PortList
	if len(args) > 0 || c.api.List(ctx, &ports, client.InNamespace(c.namespace)) != nil {
		return nil
	}
	var all []string
	for i := range ports.Items {
		all = append(all, ports.Items[i].Spec.Target.Name)
	}
	return all
}

// vmsAndPods are those, and the pods that are no launchers and not on a node's network.
func vmsAndPods(ctx context.Context, c cluster, args []string) []string {
	var pods corev1.PodList
	if len(args) > 0 || c.api.List(ctx, &pods, client.InNamespace(c.namespace)) != nil {
		return nil
	}
	all := vms(ctx, c, args)
	for i := range pods.Items {
		p := &pods.Items[i]
		launcher := slices.ContainsFunc(all, func(vm string) bool { return launches(p, vm) })
		if !launcher && !p.Spec.HostNetwork && !ended(p) {
			all = append(all, p.Name)
		}
	}
	return all
}

// traceable are what a trace goes from and to, and by what.
func traceable(ctx context.Context, c cluster, args []string) []string {
	switch len(args) {
	case 0:
		return vmsAndPods(ctx, c, nil)
	case 1:
		all := vmsAndPods(ctx, c, nil)
		var services corev1.ServiceList
		if c.api.List(ctx, &services, client.InNamespace(c.namespace)) == nil {
			for i := range services.Items {
				all = append(all, kindService+":"+services.Items[i].Name)
			}
		}
		return all
	case 2:
		return []string{protocolTCP, protocolUDP, protocolICMP}
	}
	return nil
}

// nodes are those of the cluster, for a command's first argument.
func nodes(ctx context.Context, c cluster, args []string) []string {
	var list corev1.NodeList
	if len(args) > 0 || c.api.List(ctx, &list) != nil {
		return nil
	}
	var all []string
	for i := range list.Items {
		all = append(all, list.Items[i].Name)
	}
	return all
}
