package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/sbdb"
)

// observed is all that a decision about one VM is made from.
type observed struct {
	vmi      *kubevirtv1.VirtualMachineInstance // nil if there is none
	pods     []*corev1.Pod
	vmims    []*kubevirtv1.VirtualMachineInstanceMigration
	ports    map[string]*v1alpha1.Port // by network
	rows     map[string]*nbdb.LogicalSwitchPort
	bindings []*sbdb.PortBinding
	env      migration.Env
	// gone are nodes of launchers that are no part of the cluster any more.
	gone map[ident.ChassisName]bool
	// anchors: the VM leaves the cluster through the node on which it started. alive are nodes that can still be that.
	anchors bool
	alive   map[string]bool
}

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
	if err := errors.Join(r.observePorts(ctx, vm, &o), r.observeSecond(ctx, vm, &o), r.observeAnchors(ctx, &o)); err != nil {
		return o, err
	}
	if o.gone, err = r.goneNodes(ctx, o.pods); err != nil {
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
		port, err := r.ensurePort(ctx, o.vmi, podNetwork)
		if err != nil {
			return err
		}
		if port != nil {
			r.sayUnmet(o.vmi, port)
			o.ports[podNetwork] = port
		}
	}
	name := ident.VMPort(vm.Namespace, vm.Name, podNetwork)
	row, err := r.nb.Port(ctx, name)
	if err != nil || row == nil {
		return err
	}
	if port := o.ports[podNetwork]; onPodNetwork && (port == nil || row.ExternalIDs[ident.KeyUID] != string(port.UID)) {
		return nil // an earlier VM's, about to be replaced
	}
	o.rows[podNetwork] = row
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
		observed.ExternalIDs[ident.KeyMoved], want.ExternalIDs[ident.KeyMoved] = row.ExternalIDs[ident.KeyMoved], o.moved(p)
		anchor := row.ExternalIDs[ident.KeyEgressNode]
		observed.ExternalIDs[ident.KeyEgressNode], want.ExternalIDs[ident.KeyEgressNode] = anchor, o.anchorOf(p)
		if p.Changed() || version != want.Options[ident.OptionIfaceIDVer] || anchor != want.ExternalIDs[ident.KeyEgressNode] {
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
