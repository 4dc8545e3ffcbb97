package controller

// VM reconciler.
// In:   a VMI, its launcher pods and migrations, its Ports; the northbound rows of its NICs, their southbound Port_Bindings, the names of all chassis.
// Out:  LogicalSwitchPort vm/NAMESPACE/VM/NETWORK: options:requested-chassis, options:activation-strategy, options:iface-id-ver, external_ids
//       godwit.dev/migration{,-source,-target}; Ports for NICs that have none; the launchers' annotation godwit.dev/identity; PortMigrations and their status
//       but for source, target and interruption; events on the VMI.
// What the options must be is decided by package migration. The rows are written first and alone: nothing that has to do with the API is in their way.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

type vmReconciler struct {
	api client.Client
	// live reads past the cache.
	live    client.Reader
	nb      *ovn.NB
	sb      *ovn.SB
	alloc   *allocations
	virt    *kubevirt
	events  events.EventRecorder
	metrics *metrics
	log     *slog.Logger
	now     func() time.Time
	// baselines is Config.Baselines.
	baselines bool

	mu sync.Mutex
	// last is what was decided last, for logs and events alone.
	last map[types.NamespacedName]said
}

// said is a decision as it was told to people.
type said struct {
	phase  migration.Phase
	reason migration.Reason
}

// observed is all that a decision about one VM is made from.
type observed struct {
	vmi      *kubevirtv1.VirtualMachineInstance // nil if there is none
	pods     []*corev1.Pod
	vmims    []*kubevirtv1.VirtualMachineInstanceMigration
	ports    map[string]*v1alpha1.Port // by network
	rows     map[string]*nbdb.LogicalSwitchPort
	bindings []*sbdb.PortBinding
	env      migration.Env
}

// Reconcile implements reconcile.Reconciler.
func (r *vmReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	start := r.now()
	vm := req.NamespacedName
	o, err := r.observe(ctx, vm)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
	}
	if o.vmi != nil && !hasPodNetwork(o.vmi) {
		for _, pod := range o.pods { // to the pod network these are pods like others
			r.alloc.pods.enqueue(client.ObjectKeyFromObject(pod))
		}
		o.vmi, o.pods = nil, nil
	}
	snapshot := migration.Observe(o.pods, o.vmi, o.vmims, o.rows, o.bindings)
	decision := migration.Decide(snapshot, o.env)
	changes := o.changes(decision)
	if len(changes) > 0 {
		err := r.nb.ApplyNow(ctx, changes...)
		if errors.Is(err, ovn.ErrConflict) {
			r.log.Debug("a row was changed meanwhile, deciding again", "vm", vm)
			return reconcile.Result{RequeueAfter: conflictDelay}, nil
		}
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
		}
	}
	r.tell(vm, o.vmi, decision)
	m := moment{decision: decision, seen: start, written: r.now(), wrote: len(changes) > 0}
	if err := errors.Join(r.identify(ctx, o, snapshot, decision), r.record(ctx, vm, o, snapshot, m)); err != nil {
		return reconcile.Result{}, fmt.Errorf("VM %s: %w", vm, err)
	}
	return reconcile.Result{RequeueAfter: decision.RequeueAfter}, nil
}

// conflictDelay is how soon to decide again when a row was changed between reading and writing it.
const conflictDelay = 5 * time.Millisecond

// observe reads everything again: nothing depends on which event brought us here.
func (r *vmReconciler) observe(ctx context.Context, vm types.NamespacedName) (observed, error) {
	o := observed{ports: map[string]*v1alpha1.Port{}, rows: map[string]*nbdb.LogicalSwitchPort{}}
	var err error
	if o.vmi, err = r.virt.vmi(ctx, r.api, vm); err != nil {
		return o, err
	}
	var pods corev1.PodList
	if err := r.api.List(ctx, &pods, client.InNamespace(vm.Namespace), client.MatchingFields{indexVMI: vm.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return o, fmt.Errorf("list launcher pods: %w", err)
	}
	for i := range pods.Items {
		o.pods = append(o.pods, &pods.Items[i])
	}
	var vmims kubevirtv1.VirtualMachineInstanceMigrationList
	if err := r.api.List(ctx, &vmims, client.InNamespace(vm.Namespace), client.MatchingFields{indexVMI: vm.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return o, fmt.Errorf("list migrations: %w", err)
	}
	for i := range vmims.Items {
		o.vmims = append(o.vmims, &vmims.Items[i])
	}
	if err := r.observePorts(ctx, vm, &o); err != nil {
		return o, err
	}
	o.env, err = r.environment(ctx)
	o.env.Baseline = r.baseline(o.vmi)
	return o, err
}

// observePorts reads the rows that the VM has, whether or not it has an instance now.
func (r *vmReconciler) observePorts(ctx context.Context, vm types.NamespacedName, o *observed) error {
	onPodNetwork := o.vmi != nil && hasPodNetwork(o.vmi)
	if onPodNetwork {
		port, err := r.ensurePort(ctx, o.vmi, network)
		if err != nil {
			return err
		}
		if port != nil {
			o.ports[network] = port
		}
	}
	name := ident.VMPort(vm.Namespace, vm.Name, network)
	row, err := r.nb.Port(ctx, name)
	if err != nil || row == nil {
		return err
	}
	if port := o.ports[network]; onPodNetwork && (port == nil || row.ExternalIDs[ident.KeyUID] != string(port.UID)) {
		return nil // an earlier VM's, about to be replaced
	}
	o.rows[network] = row
	binding, err := r.sb.Binding(ctx, name)
	if binding != nil {
		o.bindings = append(o.bindings, binding)
	}
	return err
}

func (r *vmReconciler) environment(ctx context.Context) (migration.Env, error) {
	names, err := r.sb.Chassis(ctx)
	env := migration.Env{Now: r.now(), Chassis: map[ident.ChassisName]bool{}}
	for name := range maps.Values(names) {
		env.Chassis[name] = true
	}
	return env, err
}

// baseline is what a benchmark wants instead of Godwit's own way to move a VM, if it may.
func (r *vmReconciler) baseline(vmi *kubevirtv1.VirtualMachineInstance) migration.Baseline {
	if !r.baselines || vmi == nil {
		return ""
	}
	return migration.Baseline(vmi.Annotations[migration.AnnotationBaseline])
}

// changes are what a decision asks of the rows, all NICs in one transaction.
func (o observed) changes(d migration.Decision) []ovn.Change {
	var out []ovn.Change
	for _, p := range d.Ports {
		row := o.rows[p.Network]
		observed, want := keysOf(p.Observed), keysOf(p.Want)
		version := row.Options[ident.OptionIfaceIDVer]
		observed.Options[ident.OptionIfaceIDVer], want.Options[ident.OptionIfaceIDVer] = version, version
		if o.vmi != nil {
			want.Options[ident.OptionIfaceIDVer] = string(o.vmi.UID)
		}
		if p.Changed() || version != want.Options[ident.OptionIfaceIDVer] {
			out = append(out, ovn.UpdatePort(p.Name, observed, want))
		}
	}
	return out
}

// versioned says whether all rows are for this very VMI. A launcher may attach only then: requested-chassis may be the same as for an earlier one.
func (o observed) versioned() bool {
	for _, row := range o.rows {
		if o.vmi == nil || row.Options[ident.OptionIfaceIDVer] != string(o.vmi.UID) {
			return false
		}
	}
	return true
}

func keysOf(s migration.PortState) ovn.PortKeys {
	return ovn.PortKeys{
		Options: map[string]string{ident.OptionRequestedChassis: s.Requested, ident.OptionActivationStrategy: string(s.Strategy)},
		ExternalIDs: map[string]string{
			ident.KeyMigration: s.Stamp.Migration, ident.KeyMigrationSource: string(s.Stamp.Source), ident.KeyMigrationTarget: string(s.Stamp.Target),
		},
	}
}

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
