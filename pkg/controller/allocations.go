package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// statusDelay gathers the changes of a Subnet's usage into one write of its status.
const statusDelay = 500 * time.Millisecond

// errNoSubnet: the Subnet does not exist or is not ready to hand out addresses.
var errNoSubnet = errors.New("Subnet is not ready")

// allocations is who has which address. It is memory alone: the truth is in the pods' annotations, the Ports' status and the northbound rows, from which it is restored.
type allocations struct {
	api  client.Reader
	nb   *ovn.NB
	join *ipam.Pool

	pods, ports, subnets trigger // asked for when an address is freed, and when a Subnet's usage has changed

	mu           sync.Mutex
	joinRestored bool
	pools        map[string]*ipam.Pool
	held         map[holder]holding
	waiting      map[string]map[holder]bool // those that found their Subnet full or missing
	mtus         map[string]int             // by node

	restore *restoration
}

// holder is who has addresses: a pod, or the Port of a VM.
type holder struct {
	kind string // ident.OwnerPod or ident.OwnerVM
	key  types.NamespacedName
}

func podHolder(key types.NamespacedName) holder  { return holder{kind: ident.OwnerPod, key: key} }
func portHolder(key types.NamespacedName) holder { return holder{kind: ident.OwnerVM, key: key} }

// owner names an object of that name and UID in a pool.
func (h holder) owner(uid types.UID) string { return h.kind + "/" + h.key.String() + "/" + string(uid) }

// holding is what one holder has.
type holding struct {
	uid    types.UID
	subnet string
}

func newAllocations(api client.Reader, nb *ovn.NB, join ipam.Spec) *allocations {
	return &allocations{
		api: api, nb: nb, join: ipam.New(join),
		pools: map[string]*ipam.Pool{}, held: map[holder]holding{}, waiting: map[string]map[holder]bool{}, mtus: map[string]int{},
		restore: newRestoration(),
	}
}

// setSubnet makes a pool for a Subnet, or adapts the one there is. A new pool first takes back what pods and Ports already have in it. It succeeds when nothing changed.
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
		if pool.Claim(c.holder.owner(c.uid), c.addrs) == nil {
			a.held[c.holder] = holding{uid: c.uid, subnet: name}
		} // whoever loses is given another address when it is reconciled
	}
	a.pools[name] = pool
	a.wake(name)
	return nil
}

// dropSubnet forgets a Subnet, unless somebody still has addresses in it; it returns their number.
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

// take gives h its addresses in a Subnet: those it has, those of ask when they are free, or new ones. A holder of the same name and another UID loses what it
// had. The error wraps errNoSubnet or one of ipam's; the holder is then enqueued again when that may have changed.
func (a *allocations) take(h holder, uid types.UID, subnet string, ask request) (string, []netip.Prefix, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if has, ok := a.held[h]; ok {
		if has.uid == uid {
			return has.subnet, a.pools[has.subnet].Of(h.owner(uid)), nil
		}
		a.free(h, has)
	}
	pool, ok := a.pools[subnet]
	if !ok {
		a.wait(subnet, h)
		return "", nil, fmt.Errorf("Subnet %s: %w", subnet, errNoSubnet)
	}
	owner := h.owner(uid)
	if ask.had == nil || pool.Claim(owner, ask.had) != nil {
		if _, err := pool.Allocate(owner, ask.wanted...); err != nil {
			a.wait(subnet, h)
			return "", nil, fmt.Errorf("Subnet %s: %w", subnet, err)
		}
	}
	a.held[h] = holding{uid: uid, subnet: subnet}
	delete(a.waiting[subnet], h)
	a.subnets.enqueueAfter(types.NamespacedName{Name: subnet}, statusDelay)
	return subnet, pool.Of(owner), nil
}

// request is what a holder asks for besides one address of each family.
type request struct {
	// had are the addresses that it had when this controller was not the leader: it gets them again unless somebody else has them now.
	had []netip.Addr
	// wanted are addresses that it must have.
	wanted []netip.Addr
}

// release takes back what h has, if anything.
func (a *allocations) release(h holder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.waiting {
		delete(w, h)
	}
	if has, ok := a.held[h]; ok {
		a.free(h, has)
	}
}

func (a *allocations) free(h holder, has holding) {
	a.pools[has.subnet].Release(h.owner(has.uid))
	delete(a.held, h)
	a.wake(has.subnet)
	a.subnets.enqueueAfter(types.NamespacedName{Name: has.subnet}, statusDelay)
}

func (a *allocations) wait(subnet string, h holder) {
	if a.waiting[subnet] == nil {
		a.waiting[subnet] = map[holder]bool{}
	}
	a.waiting[subnet][h] = true
}

func (a *allocations) wake(subnet string) {
	for h := range a.waiting[subnet] {
		a.enqueue(h)
	}
}

func (a *allocations) enqueue(h holder) {
	if h.kind == ident.OwnerVM {
		a.ports.enqueue(h.key)
	} else {
		a.pods.enqueue(h.key)
	}
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
