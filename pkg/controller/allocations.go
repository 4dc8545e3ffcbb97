package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

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

	queues *queues // pods and Ports are asked for when an address is freed, a Subnet when its usage has changed

	mu           sync.Mutex
	joinRestored bool
	pools        map[string]*ipam.Pool
	held         map[holder]holding
	waiting      map[string]map[holder]bool               // those that found their Subnet full or missing
	turns        uint64                                   // how often the choice of a Subnet may have come to mean another
	generations  map[string]int64                         // of Subnets, as they were seen last
	found        map[string][]claim                       // by Subnet, while addresses are restored
	nics         map[types.NamespacedName]map[string]bool // links of pods on second networks
	macs         macs
	claims       claims
	mtus         map[string]int // by node

	restore *restoration
}

// holder is who has addresses: a pod, the Port of a VM, or an IPAMClaim that no pod uses.
type holder struct {
	kind string // ident.OwnerPod, ident.OwnerVM, or holderClaim
	key  types.NamespacedName
	nic  string // the link of a pod on a second network, empty for its first
}

func podHolder(key types.NamespacedName) holder  { return holder{kind: ident.OwnerPod, key: key} }
func portHolder(key types.NamespacedName) holder { return holder{kind: ident.OwnerVM, key: key} }

// String names it for people.
func (h holder) String() string {
	if h.kind == ident.OwnerVM {
		return "Port " + h.key.String()
	}
	if h.kind == holderClaim {
		return "IPAMClaim " + h.key.String()
	}
	if h.nic != "" {
		return "pod " + h.key.String() + " (" + h.nic + ")"
	}
	return "pod " + h.key.String()
}

// owner names an object of that name and UID in a pool.
func (h holder) owner(uid types.UID) string {
	name := h.kind + "/" + h.key.String() + "/" + string(uid)
	if h.nic != "" {
		name += "/" + h.nic
	}
	return name
}

// holding is what one holder has.
type holding struct {
	uid    types.UID
	subnet string
}

func newAllocations(api client.Reader, nb *ovn.NB, join ipam.Spec, q *queues) *allocations {
	return &allocations{
		api: api, nb: nb, join: ipam.New(join), queues: q,
		pools: map[string]*ipam.Pool{}, held: map[holder]holding{}, waiting: map[string]map[holder]bool{}, mtus: map[string]int{},
		nics: map[types.NamespacedName]map[string]bool{}, generations: map[string]int64{},
		macs: newMACs(), claims: newClaims(), restore: newRestoration(),
	}
}

// errTakesAway: a change of a Subnet would take addresses from those who have them.
var errTakesAway = errors.New("addresses are in use")

// setSubnet makes a pool for a Subnet, or adapts the one there is, unless that takes addresses away (errTakesAway). A new pool first takes back what pods and
// Ports already have in it. It succeeds when nothing changed.
func (a *allocations) setSubnet(ctx context.Context, name string, spec ipam.Spec) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	pool, ok := a.pools[name]
	if ok && reflect.DeepEqual(pool.Spec(), spec) {
		return nil
	}
	var err error
	if ok {
		if pool, err = pool.With(spec); err != nil {
			return fmt.Errorf("%w: %w", errTakesAway, err)
		}
	} else if pool, err = a.restored(ctx, name, spec); err != nil {
		return err
	}
	a.pools[name] = pool
	a.wakeWaiting() // it may be what others than its own wait for: a namespace's second Subnet
	return nil
}

// respecified wakes everybody who waits if a Subnet's spec is another than when this was said last: it may be for other namespaces now.
func (a *allocations) respecified(name string, generation int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.generations[name] != generation {
		a.generations[name] = generation
		a.wakeWaiting()
	}
}

// dropSubnet forgets a Subnet, unless somebody still has addresses in it; it returns their number. A controller that has just begun finds out who has.
func (a *allocations) dropSubnet(ctx context.Context, name string, spec ipam.Spec) (used int64, _ error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.pools[name]; !ok {
		pool, err := a.restored(ctx, name, spec)
		if err != nil {
			return 0, err
		}
		a.pools[name] = pool
	}
	return a.drop(name), nil
}

// forgetSubnet is dropSubnet for one that is gone.
func (a *allocations) forgetSubnet(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.generations, name)
	a.drop(name)
}

func (a *allocations) drop(name string) (used int64) {
	if pool, ok := a.pools[name]; ok {
		used, _ = pool.Usage()
	}
	if used == 0 {
		delete(a.pools, name)
	}
	a.turns++
	a.wake(name) // there may be another Subnet for them
	return used
}

// take gives h its addresses in a Subnet: those it has, those of ask when they are free, or new ones. A holder of the same name and another UID loses what it
// had. The error wraps errNoSubnet or one of ipam's; the holder is then enqueued again when that may have changed.
func (a *allocations) take(h holder, uid types.UID, subnet string, ask request) (string, []netip.Prefix, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remember(h)
	a.consult(&ask)
	if has, ok := a.held[h]; ok {
		if ips := a.pools[has.subnet].Of(h.owner(has.uid)); has.uid == uid && ask.content(has.subnet, ips) {
			a.lend(h, ask.claim, ips)
			return has.subnet, ips, nil
		}
		a.free(h, has)
	}
	pool, ok := a.pools[subnet]
	if !ok {
		a.wait(subnet, h, ask.turn)
		return "", nil, fmt.Errorf("Subnet %s: %w", subnet, errNoSubnet)
	}
	if other, ok := a.borrower(ask.claim.key); ok && ask.had == nil {
		a.wait(subnet, h, ask.turn)
		return "", nil, fmt.Errorf("Subnet %s: %w: %s has those of IPAMClaim %s", subnet, ipam.ErrTaken, other, ask.claim.key)
	}
	owner := h.owner(uid)
	a.borrow(ask.claim.key, pool)
	if ask.had == nil || pool.Claim(owner, ask.had) != nil {
		if _, err := pool.Allocate(owner, ask.wanted...); err != nil {
			_ = a.keepClaim(ask.claim.key) // what it borrowed a moment ago
			a.wait(subnet, h, ask.turn)
			return "", nil, fmt.Errorf("Subnet %s: %w", subnet, err)
		}
	}
	a.held[h] = holding{uid: uid, subnet: subnet}
	a.lend(h, ask.claim, pool.Of(owner))
	a.stopWaiting(subnet, h)
	a.queues.subnets.enqueueAfter(types.NamespacedName{Name: subnet}, statusDelay)
	return subnet, pool.Of(owner), nil
}

// request is what a holder asks for besides one address of each family.
type request struct {
	// had are the addresses that it had when this controller was not the leader: it gets them again unless somebody else has them now.
	had []netip.Addr
	// wanted are addresses that it must have, in is the Subnet; none if any will do. Who had addresses is past asking.
	wanted []netip.Addr
	in     string
	// claim is the IPAMClaim that it has its addresses by, the zero value for none.
	claim ipamClaim
	// turn is what turn said before its Subnet was chosen.
	turn uint64
}

// content says whether what a holder has is what it asks for: it may ask for something else as long as nobody has been told what it has.
func (r request) content(subnet string, ips []netip.Prefix) bool {
	if r.had != nil {
		return true
	}
	lacks := slices.ContainsFunc(r.wanted, func(ip netip.Addr) bool { return !slices.Contains(addrsOf(ips), ip) })
	return !lacks && (r.in == "" || r.in == subnet)
}

// turn changes when a choice of Subnet that was made before may be another now.
func (a *allocations) turn() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.turns
}

// uidOf is the UID of the one of its name that has addresses, empty if none has.
func (a *allocations) uidOf(h holder) types.UID {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held[h].uid
}

// release takes back what h has, if anything: addresses and MAC.
func (a *allocations) release(h holder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for subnet := range a.waiting {
		a.stopWaiting(subnet, h)
	}
	if has, ok := a.held[h]; ok {
		a.free(h, has)
	}
	a.macs.release(h, switchMAC{}, a.enqueue)
}

func (a *allocations) free(h holder, has holding) {
	a.pools[has.subnet].Release(h.owner(has.uid))
	delete(a.held, h)
	a.giveBack(h)
	a.wake(has.subnet)
	a.queues.subnets.enqueueAfter(types.NamespacedName{Name: has.subnet}, statusDelay)
}

// await lets h be enqueued when there may be another Subnet for it than the one of that name.
func (a *allocations) await(h holder, subnet string, turn uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remember(h)
	a.wait(subnet, h, turn)
}

// wait lets h be enqueued when there may be something for it: at once if that was between its choice of a Subnet and now.
func (a *allocations) wait(subnet string, h holder, turn uint64) {
	if turn != a.turns {
		a.enqueue(h)
		return
	}
	if a.waiting[subnet] == nil {
		a.waiting[subnet] = map[holder]bool{}
	}
	a.waiting[subnet][h] = true
}

// stopWaiting forgets that h waits for a Subnet, and the Subnet when nobody does: anybody may ask for one that does not exist.
func (a *allocations) stopWaiting(subnet string, h holder) {
	delete(a.waiting[subnet], h)
	if len(a.waiting[subnet]) == 0 {
		delete(a.waiting, subnet)
	}
}

// wake enqueues those who wait for a Subnet's addresses. Whoever gets none waits again.
func (a *allocations) wake(subnet string) {
	for h := range a.waiting[subnet] {
		a.enqueue(h)
	}
	delete(a.waiting, subnet)
}

// wakeWaiting enqueues everybody who waits, whatever Subnet they found: there may be another for them now.
func (a *allocations) wakeWaiting() {
	a.turns++
	for subnet := range a.waiting {
		a.wake(subnet)
	}
}

// waitingIn maps a namespace, whose labels have changed, to those of a kind that wait for addresses in it: it may be another Subnet's now.
func (a *allocations) waitingIn(kind string) handler.MapFunc {
	return func(_ context.Context, ns client.Object) []reconcile.Request {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.turns++
		var out []reconcile.Request
		for _, holders := range a.waiting {
			for h := range holders {
				if h.kind == kind && h.key.Namespace == ns.GetName() {
					out = append(out, reconcile.Request{NamespacedName: h.key})
				}
			}
		}
		return out
	}
}

func (a *allocations) enqueue(h holder) {
	switch h.kind {
	case ident.OwnerVM:
		a.queues.ports.enqueue(h.key)
	case ident.OwnerPod:
		a.queues.pods.enqueue(h.key)
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
