package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// claim is what somebody has in a Subnet according to the API.
type claim struct {
	holder holder
	uid    types.UID
	addrs  []netip.Addr
	// proven: by a northbound row of the same UID, or by a Port's status, which nobody but the controller writes.
	proven bool
	since  time.Time
}

// existing is what Ports and pods already have in a Subnet: what is proven first, then the oldest. A forged annotation therefore never takes an address from a
// pod that is in the network.
func (a *allocations) existing(ctx context.Context, subnet string) ([]claim, error) {
	ports, err := a.portClaims(ctx, subnet)
	if err != nil {
		return nil, err
	}
	pods, err := a.podClaims(ctx, subnet)
	if err != nil {
		return nil, err
	}
	claims := slices.Concat(ports, pods)
	slices.SortStableFunc(claims, func(x, y claim) int {
		if x.proven != y.proven {
			if x.proven {
				return -1
			}
			return 1
		}
		return x.since.Compare(y.since)
	})
	return claims, nil
}

func (a *allocations) portClaims(ctx context.Context, subnet string) ([]claim, error) {
	var ports v1alpha1.PortList
	if err := a.api.List(ctx, &ports, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Ports to restore the addresses of Subnet %s: %w", subnet, err)
	}
	var claims []claim
	for i := range ports.Items {
		p := &ports.Items[i]
		if addrs := parseAddrs(p.Status.IPs); p.Status.Subnet == subnet && len(addrs) > 0 {
			claims = append(claims, claim{
				holder: portHolder(client.ObjectKeyFromObject(p)), uid: p.UID, addrs: addrs, proven: true, since: p.CreationTimestamp.Time,
			})
		}
	}
	return claims, nil
}

func (a *allocations) podClaims(ctx context.Context, subnet string) ([]claim, error) {
	var pods corev1.PodList
	if err := a.api.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list pods to restore the addresses of Subnet %s: %w", subnet, err)
	}
	var claims []claim
	for i := range pods.Items {
		pod := &pods.Items[i]
		id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
		if err != nil || id.Subnet != subnet || id.PodUID != string(pod.UID) || id.VMI != nil || !networked(pod) {
			continue
		}
		lsp, err := a.nb.Port(ctx, ident.PodPort(pod.Namespace, pod.Name, network))
		if err != nil {
			return nil, err
		}
		c := claim{holder: podHolder(client.ObjectKeyFromObject(pod)), uid: pod.UID, addrs: addrsOf(id.IPs), since: pod.CreationTimestamp.Time}
		c.proven = lsp != nil && lsp.ExternalIDs[ident.KeyUID] == id.PodUID && slices.Equal(lsp.Addresses, []string{topology.Addresses(id.MAC, id.IPs)})
		claims = append(claims, c)
	}
	return claims, nil
}

// parseAddrs reads addresses without a prefix length; nil if any of them is none.
func parseAddrs(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil
		}
		out = append(out, a)
	}
	return out
}

// hurry enqueues the pods that lack an identity or a row. To a new leader every pod is news: these come before those that most likely need nothing.
func (a *allocations) hurry(ctx context.Context) error {
	var pods corev1.PodList
	if err := a.api.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods to find those that nobody has served: %w", err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !networked(pod) || isLauncher(pod) {
			continue
		}
		if !strings.Contains(pod.Annotations[v1alpha1.IdentityAnnotation], string(pod.UID)) {
			a.pods.enqueue(client.ObjectKeyFromObject(pod))
			continue
		}
		lsp, err := a.nb.Port(ctx, ident.PodPort(pod.Namespace, pod.Name, network))
		if err != nil {
			return err
		}
		if lsp == nil && pod.Spec.NodeName != "" {
			a.pods.enqueue(client.ObjectKeyFromObject(pod))
		}
	}
	return nil
}
