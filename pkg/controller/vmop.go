package controller

// VirtualMachineOperation reconciler. Whoever may create an operation may do by KubeVirt's own API what it asks for: the admission policy godwit-operations asks the API server's authorizer, so that the
// controller's rights are lent to nobody.
// In:   VirtualMachineOperations; the VMs that they name, their instances and migrations; Nodes.
// Out:  an operation's finalizer and status; VirtualMachineInstanceMigrations, which the operation owns, and their deletion where it is deleted before their end; requests to
//       KubeVirt's subresources start, stop and restart of VirtualMachines.

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// indexOperation finds VirtualMachineOperations by the name of their VM.
const indexOperation = "operation"

// askTimeout bounds one request to KubeVirt's subresources.
const askTimeout = 20 * time.Second

type operationReconciler struct {
	api client.Client
	// live reads past the cache, which may not show yet what was made or asked for.
	live client.Reader
	virt *kubevirt
	// ask sends a request to a subresource of a VirtualMachine.
	ask func(ctx context.Context, vm types.NamespacedName, subresource string) error
	now func() time.Time
	log *slog.Logger
}

// addOperations lets VirtualMachineOperations be reconciled: by what happens to them, to the VMs that they name, and to their migrations.
func addOperations(ctx context.Context, p parts, virt *kubevirt) error {
	if !virt.operations {
		err := p.mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.VirtualMachineOperation{}, indexOperation, func(o client.Object) []string {
			if op, ok := o.(*v1alpha1.VirtualMachineOperation); ok {
				return []string{op.Spec.VirtualMachine}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("index VirtualMachineOperations: %w", err)
		}
		virt.operations = true
	}
	web, err := rest.UnversionedRESTClientFor(subresourceConfig(p.mgr.GetConfig()))
	if err != nil {
		return fmt.Errorf("make a client of KubeVirt's subresources: %w", err)
	}
	r := &operationReconciler{api: p.mgr.GetClient(), live: p.mgr.GetAPIReader(), virt: virt, ask: asker(web), now: time.Now, log: p.Logger}
	ofVM := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		ops, err := r.of(ctx, vmOf(o))
		if err != nil {
			r.log.Error("the operations of a VM that changed cannot be found", "vm", vmOf(o), "error", err)
		}
		var out []reconcile.Request
		for i := range ops {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&ops[i])})
		}
		return out
	})
	named := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request { // what an operation supersedes
		op, ok := o.(*v1alpha1.VirtualMachineOperation)
		if !ok {
			return nil
		}
		ops, err := r.of(ctx, types.NamespacedName{Namespace: op.Namespace, Name: op.Spec.VirtualMachine})
		if err != nil {
			r.log.Error("the operations of a VM cannot be found", "vm", op.Spec.VirtualMachine, "error", err)
		}
		var out []reconcile.Request
		for i := range ops {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&ops[i])})
		}
		return out
	})
	return ctrl.NewControllerManagedBy(p.mgr).Named("virtualmachineoperation").For(&v1alpha1.VirtualMachineOperation{}).Watches(&v1alpha1.VirtualMachineOperation{}, named).
		Watches(&kubevirtv1.VirtualMachine{}, ofVM).Watches(&kubevirtv1.VirtualMachineInstance{}, ofVM).Watches(&kubevirtv1.VirtualMachineInstanceMigration{}, ofVM).
		WithOptions(options(4)).Complete(r)
}

func subresourceConfig(cfg *rest.Config) *rest.Config {
	own := rest.CopyConfig(cfg)
	own.ContentConfig = rest.ContentConfig{NegotiatedSerializer: serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()}
	return own
}

// asker sends requests as virtctl does: a PUT with an empty object.
func asker(web rest.Interface) func(context.Context, types.NamespacedName, string) error {
	return func(ctx context.Context, vm types.NamespacedName, subresource string) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return web.Put().AbsPath("/apis", kubevirtv1.SubresourceGroupName, kubevirtv1.ApiLatestVersion, "namespaces", vm.Namespace, "virtualmachines", vm.Name, subresource).
			Body([]byte("{}")).SetHeader("Content-Type", "application/json").Do(ctx).Error()
	}
}

// of are the operations on a VM.
func (r *operationReconciler) of(ctx context.Context, vm types.NamespacedName) ([]v1alpha1.VirtualMachineOperation, error) {
	var list v1alpha1.VirtualMachineOperationList
	if err := r.api.List(ctx, &list, client.InNamespace(vm.Namespace), client.MatchingFields{indexOperation: vm.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the operations on VM %s: %w", vm, err)
	}
	return list.Items, nil
}

// Reconcile implements reconcile.Reconciler.
func (r *operationReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	op := &v1alpha1.VirtualMachineOperation{}
	err := r.api.Get(ctx, req.NamespacedName, op)
	if err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	o, err := r.observe(ctx, op)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("operation %s: %w", req.NamespacedName, err)
	}
	if op.DeletionTimestamp != nil || op.Status.Phase.Final() {
		return reconcile.Result{}, r.let(ctx, op, o.vmim)
	}
	if controllerutil.AddFinalizer(op, v1alpha1.OperationFinalizer) {
		if err := r.api.Update(ctx, op); err != nil {
			return reconcile.Result{}, fmt.Errorf("write the finalizer of operation %s: %w", req.NamespacedName, err)
		}
	}
	if op.Status.Phase == "" { // what it was when it began is known before KubeVirt is asked
		next := op.Status
		next.Phase, next.Instance = v1alpha1.OperationPending, o.instance()
		return reconcile.Result{}, r.write(ctx, op, next)
	}
	return reconcile.Result{}, r.act(ctx, op, o)
}

// act carries an operation on, and writes what it is then.
func (r *operationReconciler) act(ctx context.Context, op *v1alpha1.VirtualMachineOperation, o operation) error {
	v, next := o.decide(), op.Status
	if v.ask {
		if asks, err := r.unasked(ctx, op); !asks || err != nil {
			return err // what the cache does not have yet asks for the operation when it comes
		}
		switch err := r.request(ctx, op, &next); {
		case err == nil:
			next.Requested = true
		case apierrors.IsConflict(err), apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsNotFound(err):
			again, unread := r.observe(ctx, op)
			if unread != nil {
				return fmt.Errorf("operation %s/%s: KubeVirt does not agree (%w); whether it has before: %w", op.Namespace, op.Name, err, unread)
			}
			if v = again.decide(); v.ask { // else the VM does already what it was asked for: by a request whose answer was lost, or that came too late, say
				v = opEnds(v1alpha1.OperationFailed, opRefused, "KubeVirt does not agree: %v", err)
			}
		default:
			return fmt.Errorf("operation %s/%s: ask KubeVirt: %w", op.Namespace, op.Name, err)
		}
	}
	now := metav1.NewTime(r.now())
	if next.Started == nil && v.phase == v1alpha1.OperationInProgress {
		next.Started = &now
	}
	if v.phase.Final() {
		next.Completed = &now
	}
	next.Phase, next.Reason, next.Message, next.Progress = v.phase, v.reason, v.message, v.progress
	return r.write(ctx, op, next)
}

// unasked says whether KubeVirt has not been asked yet for what an operation is about, by the API server itself: what KubeVirt does at once may wake the operation before the cache has
// that it was asked, and it refuses what it has agreed to already.
func (r *operationReconciler) unasked(ctx context.Context, op *v1alpha1.VirtualMachineOperation) (bool, error) {
	now := &v1alpha1.VirtualMachineOperation{}
	err := r.live.Get(ctx, client.ObjectKeyFromObject(op), now)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("operation %s/%s: read whether KubeVirt was asked: %w", op.Namespace, op.Name, err)
	}
	return now.UID == op.UID && now.DeletionTimestamp == nil && !now.Status.Requested && !now.Status.Phase.Final(), nil
}

// request asks KubeVirt for what an operation is about. Asking twice for one migration makes one.
func (r *operationReconciler) request(ctx context.Context, op *v1alpha1.VirtualMachineOperation, next *v1alpha1.VirtualMachineOperationStatus) error {
	vm := types.NamespacedName{Namespace: op.Namespace, Name: op.Spec.VirtualMachine}
	switch op.Spec.Type {
	case v1alpha1.OperationStart:
		return r.ask(ctx, vm, "start")
	case v1alpha1.OperationStop:
		return r.ask(ctx, vm, "stop")
	case v1alpha1.OperationRestart:
		return r.ask(ctx, vm, "restart")
	}
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: op.Namespace, Name: migrationOf(op),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(op, v1alpha1.GroupVersion.WithKind("VirtualMachineOperation"))},
		},
		Spec: kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: vm.Name},
	}
	if op.Spec.TargetNode != "" {
		var node corev1.Node
		if err := r.api.Get(ctx, types.NamespacedName{Name: op.Spec.TargetNode}, &node, client.UnsafeDisableDeepCopy); err != nil {
			return err
		}
		vmim.Spec.AddedNodeSelector = map[string]string{corev1.LabelHostname: cmp.Or(node.Labels[corev1.LabelHostname], node.Name)}
	}
	next.Migration = vmim.Name
	if err := r.api.Create(ctx, vmim); !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// migrationOf names an operation's migration: no other of its name has the same.
func migrationOf(op *v1alpha1.VirtualMachineOperation) string {
	return longName(op.Name, string(op.UID))
}

// let ends what an operation began that is deleted, where that can be ended, and lets it go. KubeVirt aborts a migration whose object is deleted.
func (r *operationReconciler) let(ctx context.Context, op *v1alpha1.VirtualMachineOperation, vmim *kubevirtv1.VirtualMachineInstanceMigration) error {
	if !op.Status.Phase.Final() && vmim != nil && !vmim.IsFinal() && vmim.DeletionTimestamp == nil {
		if err := r.api.Delete(ctx, vmim); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("operation %s/%s is deleted: abort migration %s: %w", op.Namespace, op.Name, vmim.Name, err)
		}
		r.log.Info("operation cancelled", "operation", op.Namespace+"/"+op.Name, "vm", op.Spec.VirtualMachine, "migration", vmim.Name)
	}
	if !controllerutil.RemoveFinalizer(op, v1alpha1.OperationFinalizer) {
		return nil
	}
	if err := r.api.Update(ctx, op); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the finalizer of operation %s/%s: %w", op.Namespace, op.Name, err)
	}
	return nil
}

func (r *operationReconciler) write(ctx context.Context, op *v1alpha1.VirtualMachineOperation, next v1alpha1.VirtualMachineOperationStatus) error {
	before := op.DeepCopy()
	if op.Status = next; equality.Semantic.DeepEqual(before.Status, next) {
		return nil
	}
	if err := r.api.Status().Patch(ctx, op, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of operation %s/%s: %w", op.Namespace, op.Name, err)
	}
	if before.Status.Phase != next.Phase {
		r.log.Info("operation", "operation", op.Namespace+"/"+op.Name, "type", op.Spec.Type, "vm", op.Spec.VirtualMachine, "phase", next.Phase, "was", before.Status.Phase, "reason", next.Reason)
	}
	return nil
}

// observe reads everything again: of what starts, stops or restarts the VM by the API server itself, since a cache that does not have yet what KubeVirt has agreed to would end it too early.
func (r *operationReconciler) observe(ctx context.Context, op *v1alpha1.VirtualMachineOperation) (o operation, err error) {
	o.op = op
	key := types.NamespacedName{Namespace: op.Namespace, Name: op.Spec.VirtualMachine}
	ops, err := r.of(ctx, key) // before the VM: one that is over by then has asked for nothing since
	if err != nil {
		return o, err
	}
	for i := range ops {
		switch other := &ops[i]; {
		case supersedes(other, op):
			o.later = other.Name
		case switches(other) && supersedes(op, other) && !over(other):
			o.earlier = other.Name
		}
	}
	reader := client.Reader(r.api)
	if switches(op) && !over(op) {
		reader = r.live
	}
	vm := &kubevirtv1.VirtualMachine{}
	switch err = reader.Get(ctx, key, vm, client.UnsafeDisableDeepCopy); {
	case err == nil:
		o.vm = vm
	case !apierrors.IsNotFound(err):
		return o, fmt.Errorf("read VM %s: %w", key, err)
	}
	if o.vmi, err = r.virt.vmi(ctx, reader, key); err != nil {
		return o, err
	}
	err = r.api.Get(ctx, types.NamespacedName{Name: op.Spec.TargetNode}, &corev1.Node{}, client.UnsafeDisableDeepCopy)
	if o.node = err == nil; client.IgnoreNotFound(err) != nil {
		return o, fmt.Errorf("read node %s: %w", op.Spec.TargetNode, err)
	}
	var vmims kubevirtv1.VirtualMachineInstanceMigrationList
	if err := r.api.List(ctx, &vmims, client.InNamespace(key.Namespace), client.MatchingFields{indexVMI: key.Name}); err != nil {
		return o, fmt.Errorf("list migrations of VM %s: %w", key, err)
	}
	for i := range vmims.Items {
		switch m := &vmims.Items[i]; {
		case metav1.IsControlledBy(m, op):
			o.vmim = m
		case !m.IsFinal():
			o.busy = m.Name
		}
	}
	if o.vmim == nil && op.Status.Requested && op.Status.Migration != "" {
		if o.vmim, err = r.made(ctx, op); err != nil {
			return o, err
		}
	}
	return o, nil
}

// made is an operation's migration by the API server itself, nil if it is gone.
func (r *operationReconciler) made(ctx context.Context, op *v1alpha1.VirtualMachineOperation) (*kubevirtv1.VirtualMachineInstanceMigration, error) {
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{}
	err := r.live.Get(ctx, types.NamespacedName{Namespace: op.Namespace, Name: op.Status.Migration}, vmim)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read migration %s/%s: %w", op.Namespace, op.Status.Migration, err)
	}
	return vmim, nil
}

// supersedes says whether an operation wants something else of a VM than an earlier one. Migrations do not: while something else is under way they fail by themselves.
func supersedes(later, op *v1alpha1.VirtualMachineOperation) bool {
	if later.UID == op.UID || later.DeletionTimestamp != nil || later.Status.Reason == opRefused {
		return false
	}
	if !switches(later) {
		return false
	}
	if c := later.CreationTimestamp.Compare(op.CreationTimestamp.Time); c != 0 {
		return c > 0
	}
	return later.Name > op.Name
}

// switches says whether an operation starts, stops or restarts its VM.
func switches(op *v1alpha1.VirtualMachineOperation) bool {
	return op.Spec.Type != v1alpha1.OperationEvict && op.Spec.Type != v1alpha1.OperationMigrate
}

// over says whether nothing is asked of KubeVirt for an operation any more.
func over(op *v1alpha1.VirtualMachineOperation) bool {
	return op.Status.Phase.Final() || op.DeletionTimestamp != nil && !controllerutil.ContainsFinalizer(op, v1alpha1.OperationFinalizer)
}
