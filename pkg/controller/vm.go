package controller

// VM reconciler.
// In:   a VMI, its launcher pods and migrations, its Ports; the northbound rows of its NICs, their southbound Port_Bindings, the names of all chassis, the Nodes of its launchers.
// Out:  LogicalSwitchPort vm/NAMESPACE/VM/NETWORK: options:requested-chassis, options:activation-strategy, options:iface-id-ver, external_ids
//       godwit.dev/{migration,migration-source,migration-target,moved,egress-node}; Ports for NICs that have none; the launchers' annotation godwit.dev/identity; PortMigrations and their status
//       but for source, target and interruption; events on the VMI.
// What the options must be is decided by package migration. The rows are written first and alone: nothing that has to do with the API is in their way.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

type vmReconciler struct {
	api client.Client
	// live reads past the cache.
	live     client.Reader
	nb       *ovn.NB
	sb       *ovn.SB
	alloc    *allocations
	queues   *queues
	policies *policies
	anchors  *anchors
	virt     *kubevirt
	nads     *nads
	events   events.EventRecorder
	metrics  *metrics
	log      *slog.Logger
	now      func() time.Time
	// baselines is Config.Baselines.
	baselines bool

	mu sync.Mutex
	// last is what was decided last, for logs and events alone.
	last map[types.NamespacedName]said
	// held is the last migration of a VM whose ports waited for its connections to be handed over.
	held map[types.NamespacedName]hold
}

// said is a decision as it was told to people.
type said struct {
	phase  migration.Phase
	reason migration.Reason
}

// Reconcile implements reconcile.Reconciler.
func (r *vmReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	start := r.now()
	vm := req.NamespacedName
	if err := r.policies.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
	}
	o, err := r.observe(ctx, vm)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
	}
	if o.vmi != nil && !hasPodNetwork(o.vmi) {
		if err := r.sayWithoutPodNetwork(ctx, o.vmi); err != nil {
			return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
		}
		for _, pod := range o.pods { // to the pod network these are pods like others
			r.queues.pods.enqueue(client.ObjectKeyFromObject(pod))
		}
		o.vmi, o.pods = nil, nil
	}
	snapshot := migration.Observe(o.pods, o.vmi, o.vmims, o.rows, o.bindings).Fenced(o.gone)
	decision := migration.Decide(snapshot, o.env)
	changes := o.changes(decision)
	if len(changes) > 0 {
		if again, err := r.waits(ctx, vm, o, decision, start); again > 0 || err != nil {
			return reconcile.Result{RequeueAfter: again}, err // what it waits for wakes it before
		}
		if !r.tellPolicies(o) {
			return reconcile.Result{RequeueAfter: behindDelay}, nil // the Port's reconciler wakes it before
		}
	}
	anchors := r.tellAnchors(vm, o, decision)
	news, journey := r.journeys(vm, o, decision)
	if len(changes) > 0 {
		err := r.nb.ApplyNow(ctx, append(changes, r.policies.pending(), r.anchors.pending())...)
		if errors.Is(err, ovn.ErrConflict) {
			r.log.Debug("a row was changed meanwhile, deciding again", "vm", vm)
			return reconcile.Result{RequeueAfter: conflictDelay}, nil
		}
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
		}
	} else if news || anchors {
		if err := r.nb.Apply(ctx, r.policies.pending(), r.anchors.pending()); err != nil {
			return reconcile.Result{}, fmt.Errorf("connections and egress of VM %s: %w", vm, err)
		}
	}
	r.tell(vm, o.vmi, decision)
	m := moment{decision: decision, seen: start, written: r.now(), wrote: len(changes) > 0}
	if err := errors.Join(r.identify(ctx, o, snapshot, decision), r.record(ctx, vm, o, snapshot, m)); err != nil {
		return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
	}
	return reconcile.Result{RequeueAfter: sooner(decision.RequeueAfter, journey.left)}, nil
}

// tellPolicies tells of the VM, which may be new to policies or have other labels than before: a launcher attaches after that. It says whether its rows may be written:
// not where a Port has a row, and its reconciler has let it go since, or has not told of it yet: that is asked for.
func (r *vmReconciler) tellPolicies(o observed) bool {
	told := true
	for network, port := range o.ports {
		ips := parseAddrs(port.Status.IPs)
		if ips == nil || r.policies.followVM(port, o.vmi, ips) || o.vmi == nil || o.rows[network] == nil {
			continue
		}
		r.queues.ports.enqueue(client.ObjectKeyFromObject(port))
		told = false
	}
	return told
}

// conflictDelay is how soon to decide again when a row was changed between reading and writing it.
const conflictDelay = 5 * time.Millisecond

// unclear are the VMs whose decision may change when a chassis comes or goes.
func (r *vmReconciler) unclear() []types.NamespacedName {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []types.NamespacedName
	for vm, s := range r.last {
		if s.phase == migration.Unclear || s.reason == migration.ReasonChassisMissing {
			out = append(out, vm)
		}
	}
	return out
}

// tell logs a decision that differs from the last one, and makes an event of it where that matters to the VM's owner.
func (r *vmReconciler) tell(vm types.NamespacedName, vmi *kubevirtv1.VirtualMachineInstance, d migration.Decision) {
	now := said{phase: d.Phase, reason: d.Reason}
	r.mu.Lock()
	was, known := r.last[vm]
	if vmi == nil {
		delete(r.last, vm)
		delete(r.held, vm)
	} else {
		r.last[vm] = now
	}
	r.mu.Unlock()
	if was == now || vmi == nil && !known {
		return
	}
	r.log.Info("VM", "vm", vm, "phase", d.Phase, "was", was.phase, "reason", d.Reason, "migration", d.Migration, "message", d.Message)
	if vmi == nil || was.phase == d.Phase && d.Phase != migration.Unclear {
		return
	}
	switch d.Phase {
	case migration.Prepared, migration.Committed, migration.RolledBack:
		r.events.Eventf(vmi, nil, corev1.EventTypeNormal, "Network"+string(d.Phase), "Migrate", "%s (%s)", d.Message, d.Reason)
	case migration.Unclear:
		r.events.Eventf(vmi, nil, corev1.EventTypeWarning, "NetworkUnclear", "Migrate", "%s (%s)", d.Message, d.Reason)
	}
}
