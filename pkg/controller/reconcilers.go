package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	kubevirtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// Indexes of the cache.
const (
	indexVMI    = "vmi"    // launcher pods, migrations and PortMigrations by the name of their VMI
	indexTarget = "target" // Ports by the name of their VM
)

// How many VMs are reconciled at once, and how many policies and namespaces: these share transactions, and the index is one at a time.
const (
	vmWorkers     = 16
	policyWorkers = 4
)

// relabelled: what waits for an address is looked at again when its namespace may be another Subnet's.
func relabelled() builder.WatchesOption {
	return builder.WithPredicates(predicate.LabelChangedPredicate{})
}

// readdressed: a Subnet that was refused for a node's address is looked at again when the node has another, or is gone.
func readdressed() builder.WatchesOption {
	return builder.WithPredicates(predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false }, // what is in the network stays there
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, ok := e.ObjectOld.(*corev1.Node)
			now, is := e.ObjectNew.(*corev1.Node)
			return ok && is && !slices.Equal(before.Status.Addresses, now.Status.Addresses)
		},
	})
}

// parts is what the reconcilers are made from.
type parts struct {
	Config
	mgr   manager.Manager
	nb    *ovn.NB
	sb    *ovn.SB
	alloc *allocations
	*queues
	policies *policies
	services *services
	anchors  *anchors
	hosts    *hosts
	// outside is how Subnets' pods leave the cluster.
	outside *egressState
}

func addReconcilers(ctx context.Context, p parts) error {
	mgr, alloc := p.mgr, p.alloc
	if err := errors.Join(warm(ctx, mgr), addIndexes(ctx, mgr)); err != nil {
		return err
	}
	api, events, place := mgr.GetClient(), mgr.GetEventRecorder("godwit-controller"), subnetChoice{api: mgr.GetClient()}
	m := newMetrics(p.Registerer)
	virt := newKubevirt(mgr, p.Logger, &p.vms)
	second := newNADs(mgr, p.Logger, p.queues, virt)
	if err := second.add(ctx); err != nil {
		return err
	}
	byClaim := newIPAMClaims(p, place, events)
	if err := byClaim.add(ctx); err != nil {
		return err
	}
	p.services = newServices(p.nb, p.Logger, alloc.join.Spec().CIDRs)
	p.policies = newPolicies(p.Config, p.nb, virt, alloc.join.Spec().CIDRs)
	p.anchors, p.hosts, p.outside = newAnchors(p, virt), newHosts(p), newEgressState()
	vms := &vmReconciler{
		api: api, live: mgr.GetAPIReader(), nb: p.nb, sb: p.sb, alloc: alloc, queues: p.queues, virt: virt, events: events, metrics: m, log: p.Logger,
		nads: second, now: time.Now, last: map[types.NamespacedName]said{}, held: map[types.NamespacedName]hold{}, baselines: p.Baselines, policies: p.policies, anchors: p.anchors,
	}
	virt.start = func(ctx context.Context) error { return addVMs(ctx, p, virt, vms) }
	if err := virt.add(ctx); err != nil {
		return err
	}
	p.watchOVN(ctx, virt, vms)
	traces, err := newTracer(p.OTLPEndpoint, p.Logger)
	if err != nil {
		return err
	}
	join := alloc.join.Spec()
	pods := &podReconciler{api: api, nb: p.nb, alloc: alloc, policies: p.policies, place: place, virt: virt, nads: second, byClaim: byClaim, events: events, log: p.Logger}
	ports := &portReconciler{api: api, nb: p.nb, sb: p.sb, alloc: alloc, policies: p.policies, anchors: p.anchors, queues: p.queues, virt: virt, place: place, events: events, log: p.Logger}
	subnets := &subnetReconciler{api: api, nb: p.nb, alloc: alloc, queues: p.queues, egress: p.outside, hosts: p.hosts, join: join, services: p.Services, log: p.Logger}
	node := &nodeReconciler{api: api, nb: p.nb, sb: p.sb, alloc: alloc, policies: p.policies, anchors: p.anchors, hosts: p.hosts, events: events, log: p.Logger, gone: map[string]time.Time{}}
	return errors.Join(
		mgr.Add(leaderTask(func(ctx context.Context) error { return begin(ctx, p) })),
		ctrl.NewControllerManagedBy(mgr).Named("pod").For(&corev1.Pod{}).
			Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(alloc.waitingIn(ident.OwnerPod)), relabelled()).
			WatchesRawSource(&p.pods).WithOptions(options(p.PodWorkers)).Complete(pods),
		ctrl.NewControllerManagedBy(mgr).Named("port").For(&v1alpha1.Port{}).
			Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(alloc.waitingIn(ident.OwnerVM)), relabelled()).
			Watches(&v1alpha1.Subnet{}, handler.EnqueueRequestsFromMapFunc(ports.allowing), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
			WatchesRawSource(&p.ports).WithOptions(options(vmWorkers)).Complete(ports),
		ctrl.NewControllerManagedBy(mgr).Named("portmigration").For(&v1alpha1.PortMigration{}).WithOptions(options(1)).
			Complete(&portMigrationReconciler{api: api, keep: p.KeepMigrations, metrics: m, traces: traces, now: time.Now}),
		mgr.Add(leaderTask(traces.run)),
		ctrl.NewControllerManagedBy(mgr).Named("subnet").For(&v1alpha1.Subnet{}).
			Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(subnets.afterNode), readdressed()).
			WatchesRawSource(&p.subnets).WithOptions(options(1)).Complete(subnets),
		ctrl.NewControllerManagedBy(mgr).Named("node").For(&corev1.Node{}).WatchesRawSource(&p.nodes).WithOptions(options(4)).Complete(node),
		ctrl.NewControllerManagedBy(mgr).Named("networkpolicy").For(&networkingv1.NetworkPolicy{}).WithOptions(options(policyWorkers)).
			Complete(&policyReconciler{api: api, nb: p.nb, policies: p.policies, events: events, metrics: m, log: p.Logger}),
		ctrl.NewControllerManagedBy(mgr).Named("namespace").For(&corev1.Namespace{}, builder.WithPredicates(predicate.LabelChangedPredicate{})).WithOptions(options(policyWorkers)).
			Complete(&namespaceReconciler{api: api, nb: p.nb, policies: p.policies}),
		mgr.Add(p.policies),
		mgr.Add(leaderTask(func(ctx context.Context) error {
			return tellInventory(ctx, p.Registerer, &inventory{api: mgr.GetCache(), nb: p.nb, sb: p.sb, alloc: alloc, virt: virt, now: time.Now, log: p.Logger})
		})),
		mgr.AddReadyzCheck("policies", func(*http.Request) error {
			if elected(mgr) && !p.policies.compared.Load() {
				return errors.New("the rows of NetworkPolicies are not compared with the northbound database yet")
			}
			return nil
		}),
		mgr.Add(&garbageCollector{
			api: mgr.GetCache(), nb: p.nb, sb: p.sb, alloc: alloc, policies: p.policies, services: p.services, anchors: p.anchors, hosts: p.hosts, queues: p.queues, log: p.Logger,
		}),
		mgr.Add(&standDown{
			api: mgr.GetAPIReader(), namespace: p.Namespace, connected: func() bool { return p.nb.Connected() && p.sb.Connected() }, now: time.Now, log: p.Logger,
		}),
		mgr.Add(&claimGuard{api: mgr.GetCache(), nb: p.nb, sb: p.sb, events: events, undone: m.claimsUndone, log: p.Logger}),
		addServices(ctx, p, m, events), addEgress(p, virt),
	)
}

// begin is what a new leader does before it serves pods: it makes the network, and finds out who has what.
func begin(ctx context.Context, p parts) error {
	if err := prepare(ctx, p.mgr.GetClient(), p.nb, p.Config, p.alloc.join.Spec()); err != nil {
		return err
	}
	if err := p.alloc.restoreMTUs(ctx); err != nil {
		return err
	}
	if err := p.alloc.restoreMACs(ctx); err != nil {
		return err
	}
	if err := p.anchors.restore(ctx); err != nil {
		return err
	}
	if err := p.hosts.restore(ctx); err != nil {
		return err
	}
	if err := p.policies.restore(ctx, p.mgr.GetCache()); err != nil {
		return err
	}
	if p.Services {
		if err := p.services.restore(ctx, p.mgr.GetCache()); err != nil {
			return err
		}
	} else {
		close(p.services.restored) // there are none: what an earlier controller made of them goes
	}
	if err := p.alloc.enqueuePods(ctx, unserved); err != nil {
		return err
	}
	return p.alloc.restore.run(ctx, p.mgr.GetCache())
}

// warm makes a replica that does not lead read all objects, so that it can take over at once.
func warm(ctx context.Context, mgr manager.Manager) error {
	for _, obj := range []client.Object{
		&corev1.Pod{}, &corev1.Node{}, &corev1.Namespace{}, &v1alpha1.Subnet{}, &v1alpha1.Port{}, &v1alpha1.PortMigration{},
		&networkingv1.NetworkPolicy{}, &coordinationv1.Lease{}, &discoveryv1.EndpointSlice{},
	} {
		if _, err := mgr.GetCache().GetInformer(ctx, obj); err != nil {
			return fmt.Errorf("watch %T: %w", obj, err)
		}
	}
	return nil
}

func addIndexes(ctx context.Context, mgr manager.Manager) error {
	add := func(obj client.Object, field string, value func(client.Object) string) error {
		err := mgr.GetFieldIndexer().IndexField(ctx, obj, field, func(o client.Object) []string {
			if v := value(o); v != "" {
				return []string{v}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("index %T by %s: %w", obj, field, err)
		}
		return nil
	}
	return errors.Join(
		add(&corev1.Pod{}, indexVMI, func(o client.Object) string { return vmOf(o).Name }),
		add(&v1alpha1.PortMigration{}, indexVMI, func(o client.Object) string { return vmOf(o).Name }),
		add(&v1alpha1.Port{}, indexTarget, func(o client.Object) string { return vmOf(o).Name }),
	)
}

// addVMs reads KubeVirt's objects and lets VMs be reconciled: by what happens to them, to their pods and migrations, to their Ports, and to their rows.
func addVMs(ctx context.Context, p parts, virt *kubevirt, vms *vmReconciler) error {
	if !virt.indexed {
		err := p.mgr.GetFieldIndexer().IndexField(ctx, &kubevirtv1.VirtualMachineInstanceMigration{}, indexVMI, func(o client.Object) []string {
			return []string{vmOf(o).Name}
		})
		if err != nil {
			return fmt.Errorf("index VirtualMachineInstanceMigrations: %w", err)
		}
		virt.indexed = true
	}
	for _, kind := range []client.Object{&kubevirtv1.VirtualMachine{}, &kubevirtv1.VirtualMachineInstance{}} {
		if _, err := p.mgr.GetCache().GetInformer(ctx, kind); err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	virt.ready.Store(true)
	toVM := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		if vm := vmOf(o); vm.Name != "" {
			return []reconcile.Request{{NamespacedName: vm}}
		}
		return nil
	})
	// A VMI that comes, goes or changes may change what its Ports are.
	ofVMI := whenever(func(ctx context.Context, o client.Object) { p.enqueuePorts(ctx, vmOf(o)) })
	err := ctrl.NewControllerManagedBy(p.mgr).Named("vm").For(&kubevirtv1.VirtualMachineInstance{}).Watches(&kubevirtv1.VirtualMachineInstance{}, ofVMI).
		Watches(&kubevirtv1.VirtualMachineInstanceMigration{}, toVM).Watches(&corev1.Pod{}, toVM).
		Watches(&v1alpha1.Port{}, toVM).Watches(&v1alpha1.PortMigration{}, toVM).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(vms.launchersOn), fenced()).
		WatchesRawSource(&p.vms).WithOptions(options(vmWorkers)).Complete(vms)
	return errors.Join(err, addDeclared(p, vms), addOperations(ctx, p, virt))
}

// whenever handles every event of an object by telling somebody else: the reconciler that watches is asked for nothing.
func whenever(tell func(context.Context, client.Object)) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, _ queue) { tell(ctx, e.Object) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, _ queue) { tell(ctx, e.ObjectNew) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, _ queue) { tell(ctx, e.Object) },
	}
}

// enqueuePorts asks for a VM's Ports to be reconciled.
func (p parts) enqueuePorts(ctx context.Context, vm types.NamespacedName) {
	ports, err := portsOf(ctx, p.mgr.GetCache(), vm)
	if err != nil {
		p.Logger.Error("the Ports of a VM that changed cannot be found", "vm", vm, "error", err)
	}
	for _, port := range ports {
		p.ports.enqueue(client.ObjectKeyFromObject(port))
	}
}

// watchOVN lets whatever a row belongs to be reconciled when the row changes. Only the leader does; whoever leads next looks at everything anyway.
func (p parts) watchOVN(ctx context.Context, virt *kubevirt, vms *vmReconciler) {
	vm := func(namespace, name string) {
		key := types.NamespacedName{Namespace: namespace, Name: name}
		virt.enqueue(key)
		p.enqueuePorts(ctx, key)
	}
	p.nb.WatchPorts(func(namespace, name, kind string) {
		if !elected(p.mgr) {
			return
		}
		switch kind {
		case ident.OwnerPod:
			p.pods.enqueue(types.NamespacedName{Namespace: namespace, Name: name})
		case ident.OwnerNode:
			p.nodes.enqueue(types.NamespacedName{Name: name})
		case ident.OwnerVM:
			vm(namespace, name)
		}
	})
	p.sb.Watch(func(namespace, name string) {
		if elected(p.mgr) {
			vm(namespace, name)
		}
	}, func() {
		for _, key := range vms.unclear() {
			virt.enqueue(key)
		}
	})
}
