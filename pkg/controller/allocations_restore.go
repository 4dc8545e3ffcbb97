package controller

import (
	"context"
	"errors"
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
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/nbdb"
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
	// by is the IPAMClaim by which it is had, the zero value for none.
	by types.NamespacedName
}

// restored is a pool with what pods and Ports already have in a Subnet.
func (a *allocations) restored(ctx context.Context, subnet string, spec ipam.Spec) (*ipam.Pool, error) {
	claims, err := a.claimsIn(ctx, subnet)
	if err != nil {
		return nil, err
	}
	pool := ipam.New(spec)
	for _, c := range claims {
		if pool.Claim(c.holder.owner(c.uid), c.addrs) == nil {
			a.held[c.holder] = holding{uid: c.uid, subnet: subnet}
			a.remember(c.holder)
			if c.by.Name != "" {
				a.claims.lent[c.holder] = c.by
			}
		} // whoever loses is given another address when it is reconciled
	}
	return pool, a.restoreClaims(ctx, subnet, pool)
}

// claimsIn is what is claimed in a Subnet. A leader that begins reads all pods once, not once for each Subnet. Later nothing is remembered: a pod that has
// gone would claim its address for ever.
func (a *allocations) claimsIn(ctx context.Context, subnet string) ([]claim, error) {
	if a.restore.isDone() {
		a.found = nil
		found, err := a.existing(ctx, func(s string) bool { return s == subnet })
		return found[subnet], err
	}
	if a.found == nil {
		found, err := a.existing(ctx, func(string) bool { return true })
		if err != nil {
			return nil, err
		}
		a.found = found
	}
	claims := a.found[subnet]
	delete(a.found, subnet)
	return claims, nil
}

// existing is what Ports and pods already have in Subnets that are asked for: what is proven first, then the oldest. A forged annotation therefore never takes
// an address from a pod that is in the network.
func (a *allocations) existing(ctx context.Context, asked func(subnet string) bool) (map[string][]claim, error) {
	found := map[string][]claim{}
	if err := errors.Join(a.portClaims(ctx, asked, found), a.podClaims(ctx, asked, found)); err != nil {
		return nil, err
	}
	for _, claims := range found {
		slices.SortStableFunc(claims, func(x, y claim) int {
			if x.proven != y.proven {
				if x.proven {
					return -1
				}
				return 1
			}
			return x.since.Compare(y.since)
		})
	}
	return found, nil
}

func (a *allocations) portClaims(ctx context.Context, asked func(subnet string) bool, found map[string][]claim) error {
	var ports v1alpha1.PortList
	if err := a.api.List(ctx, &ports, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Ports to restore their addresses: %w", err)
	}
	for i := range ports.Items {
		p := &ports.Items[i]
		subnet, addrs := p.Status.Subnet, parseAddrs(p.Status.IPs)
		if len(addrs) > 0 && asked(subnet) {
			found[subnet] = append(found[subnet], claim{
				holder: portHolder(client.ObjectKeyFromObject(p)), uid: p.UID, addrs: addrs, proven: true, since: p.CreationTimestamp.Time,
			})
		}
	}
	return nil
}

func (a *allocations) podClaims(ctx context.Context, asked func(subnet string) bool, found map[string][]claim) error {
	var pods corev1.PodList
	if err := a.api.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods to restore their addresses: %w", err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !networked(pod) {
			continue
		}
		for _, at := range attachments(pod, identityOf(pod)) {
			if !asked(at.Subnet) {
				continue
			}
			lsp, err := a.nb.Port(ctx, ident.PodPort(pod.Namespace, pod.Name, at.network))
			if err != nil {
				return err
			}
			c := claim{holder: at.holder, uid: pod.UID, addrs: addrsOf(at.IPs), since: pod.CreationTimestamp.Time, by: claimOf(pod, at.holder.nic)}
			c.proven = lsp != nil && lsp.ExternalIDs[ident.KeyUID] == at.PodUID && slices.Equal(lsp.Addresses, []string{topology.Addresses(at.MAC, at.IPs)})
			found[at.Subnet] = append(found[at.Subnet], c)
		}
	}
	return nil
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

// podRows are the rows of a pod by network.
type podRows map[string]*nbdb.LogicalSwitchPort

// enqueuePods enqueues the pods of which wrong says so, by the pod and its rows.
func (a *allocations) enqueuePods(ctx context.Context, wrong func(*corev1.Pod, podRows) bool) error {
	var pods corev1.PodList
	if err := a.api.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods to compare them with their ports: %w", err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !networked(pod) || isLauncher(pod) {
			continue
		}
		rows, err := a.rowsOf(ctx, pod)
		if err != nil {
			return err
		}
		if wrong(pod, rows) {
			a.queues.pods.enqueue(client.ObjectKeyFromObject(pod))
		}
	}
	return nil
}

// unserved: the pod lacks an identity or a row. To a new leader every pod is news: these come before those that most likely need nothing, so they are found
// without much reading.
func unserved(pod *corev1.Pod, rows podRows) bool {
	return !strings.Contains(pod.Annotations[v1alpha1.IdentityAnnotation], string(pod.UID)) || rows[podNetwork] == nil && pod.Spec.NodeName != ""
}

// outdated: a row of the pod, or the limits beside it, may be other than its identity and its node ask for.
func outdated(pod *corev1.Pod, rows podRows) bool {
	if unserved(pod, rows) {
		return true
	}
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil || pod.Spec.NodeName == "" {
		return err != nil
	}
	has := attachments(pod, id)
	limits, err := topology.PodBandwidth(pod.Namespace, pod.Name, podNetwork, pod.Annotations)
	return err == nil && len(limits) > 0 || len(rows) != len(has) || slices.ContainsFunc(has, func(at attachment) bool {
		want, lsp := topology.Pod(pod.Namespace, pod.Name, at.network, ident.ChassisName(pod.Spec.NodeName), at.Identity), rows[at.network]
		return lsp == nil || !slices.Equal(lsp.Addresses, want.Addresses) || !slices.Equal(lsp.PortSecurity, want.PortSecurity) ||
			!includes(lsp.Options, want.Options) || !includes(lsp.ExternalIDs, want.ExternalIDs)
	})
}

// includes says whether a map has all of some keys, with their values.
func includes(have, keys map[string]string) bool {
	for k, v := range keys {
		if have[k] != v {
			return false
		}
	}
	return true
}
