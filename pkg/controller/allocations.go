package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// statusDelay gathers the changes of a Subnet's usage into one write of its status.
const statusDelay = 500 * time.Millisecond

// errNoSubnet: the pod's Subnet does not exist or is not ready to hand out addresses.
var errNoSubnet = errors.New("Subnet is not ready")

// allocations is who has which address. It is memory alone: the truth is in the pods' annotations and the northbound rows, from which it is restored.
type allocations struct {
	api  client.Reader
	nb   *ovn.NB
	join *ipam.Pool

	pods, subnets trigger // asked for when an address is freed and when a Subnet's usage has changed

	mu           sync.Mutex
	joinRestored bool
	pools        map[string]*ipam.Pool
	held         map[types.NamespacedName]holding
	waiting      map[string]map[types.NamespacedName]bool // pods that found their Subnet full or missing
	mtus         map[string]int                           // by node

	restore *restoration
}

// holding is what one pod has.
type holding struct {
	uid    types.UID
	subnet string
}

func newAllocations(api client.Reader, nb *ovn.NB, join ipam.Spec) *allocations {
	return &allocations{
		api: api, nb: nb, join: ipam.New(join),
		pools: map[string]*ipam.Pool{}, held: map[types.NamespacedName]holding{},
		waiting: map[string]map[types.NamespacedName]bool{}, mtus: map[string]int{},
		restore: newRestoration(),
	}
}

func podOwner(key types.NamespacedName, uid types.UID) string {
	return key.String() + "/" + string(uid)
}

// setSubnet makes a pool for a Subnet, or adapts the one there is. A new pool first takes back what pods already have in it. It succeeds when nothing changed.
func (a *allocations) setSubnet(ctx context.Context, name string, spec ipam.Spec) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p, ok := a.pools[name]; ok {
		if reflect.DeepEqual(p.Spec(), spec) {
			return nil
		}
		next, err := p.With(spec)
		if err == nil {
			a.pools[name] = next
		}
		return err
	}
	claims, err := a.existing(ctx, name)
	if err != nil {
		return err
	}
	pool := ipam.New(spec)
	for _, c := range claims {
		if pool.Claim(podOwner(c.key, c.uid), c.addrs) == nil {
			a.held[c.key] = holding{uid: c.uid, subnet: name}
		} // whoever loses is given another address when it is reconciled
	}
	a.pools[name] = pool
	a.wake(name)
	return nil
}

// dropSubnet forgets a Subnet, unless pods still have addresses in it; it returns their number.
func (a *allocations) dropSubnet(name string) (used int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p, ok := a.pools[name]; ok {
		used, _ = p.Usage()
	}
	if used == 0 {
		delete(a.pools, name)
	}
	return used
}

type claim struct {
	key    types.NamespacedName
	uid    types.UID
	addrs  []netip.Addr
	backed bool // by a northbound row of the same UID
	since  time.Time
}

// existing is what pods already have in a Subnet, by their annotations: those with a northbound row first, then the oldest. A forged annotation therefore never
// takes an address from a pod that is in the network.
func (a *allocations) existing(ctx context.Context, subnet string) ([]claim, error) {
	var pods corev1.PodList
	if err := a.api.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list pods to restore the addresses of Subnet %s: %w", subnet, err)
	}
	var claims []claim
	for i := range pods.Items {
		pod := &pods.Items[i]
		id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
		if err != nil || id.Subnet != subnet || id.PodUID != string(pod.UID) || !networked(pod) {
			continue
		}
		lsp, err := a.nb.Port(ctx, ident.PodPort(pod.Namespace, pod.Name, network))
		if err != nil {
			return nil, err
		}
		c := claim{key: client.ObjectKeyFromObject(pod), uid: pod.UID, addrs: addrsOf(id.IPs), since: pod.CreationTimestamp.Time}
		c.backed = lsp != nil && lsp.ExternalIDs[ident.KeyUID] == id.PodUID && slices.Equal(lsp.Addresses, []string{topology.Addresses(id.MAC, id.IPs)})
		claims = append(claims, c)
	}
	slices.SortStableFunc(claims, func(x, y claim) int {
		if x.backed != y.backed {
			if x.backed {
				return -1
			}
			return 1
		}
		return x.since.Compare(y.since)
	})
	return claims, nil
}

// pod gives a pod its addresses in a Subnet: those it has, those of its annotation when they are free, or new ones. A pod of the same name and another UID loses
// what it had. The error wraps errNoSubnet or ipam.ErrFull; the pod is then enqueued again when that changes.
func (a *allocations) pod(key types.NamespacedName, uid types.UID, subnet string, has []netip.Addr) (string, []netip.Prefix, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h, ok := a.held[key]; ok {
		if h.uid == uid {
			return h.subnet, a.pools[h.subnet].Of(podOwner(key, uid)), nil
		}
		a.release(key, h)
	}
	pool, ok := a.pools[subnet]
	if !ok {
		a.wait(subnet, key)
		return "", nil, fmt.Errorf("Subnet %s: %w", subnet, errNoSubnet)
	}
	owner := podOwner(key, uid)
	if has == nil || pool.Claim(owner, has) != nil {
		if _, err := pool.Allocate(owner); err != nil {
			a.wait(subnet, key)
			return "", nil, fmt.Errorf("Subnet %s: %w", subnet, err)
		}
	}
	a.held[key] = holding{uid: uid, subnet: subnet}
	delete(a.waiting[subnet], key)
	a.subnets.enqueueAfter(types.NamespacedName{Name: subnet}, statusDelay)
	return subnet, pool.Of(owner), nil
}

// releasePod takes back what a pod has, if anything.
func (a *allocations) releasePod(key types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.waiting {
		delete(w, key)
	}
	if h, ok := a.held[key]; ok {
		a.release(key, h)
	}
}

func (a *allocations) release(key types.NamespacedName, h holding) {
	a.pools[h.subnet].Release(podOwner(key, h.uid))
	delete(a.held, key)
	a.wake(h.subnet)
	a.subnets.enqueueAfter(types.NamespacedName{Name: h.subnet}, statusDelay)
}

func (a *allocations) wait(subnet string, key types.NamespacedName) {
	if a.waiting[subnet] == nil {
		a.waiting[subnet] = map[types.NamespacedName]bool{}
	}
	a.waiting[subnet][key] = true
}

func (a *allocations) wake(subnet string) {
	for key := range a.waiting[subnet] {
		a.pods.enqueue(key)
	}
}

// hurry enqueues the pods that lack an identity or a row. To a new leader every pod is news: these come before those that most likely need nothing.
func (a *allocations) hurry(ctx context.Context) error {
	var pods corev1.PodList
	if err := a.api.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods to find those that nobody has served: %w", err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !networked(pod) {
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

// usage counts a Subnet's addresses of the scarcer family.
func (a *allocations) usage(subnet string) (used, available int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p, ok := a.pools[subnet]; ok {
		return p.Usage()
	}
	return 0, 0
}

func addrsOf(ips []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		out = append(out, ip.Addr())
	}
	return out
}
