package controller

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// apart is a VM that migrates from n1 to n2, whose row asks for both.
type apart struct {
	vmi            *kubevirtv1.VirtualMachineInstance
	source, target *corev1.Pod
	vmim           *kubevirtv1.VirtualMachineInstanceMigration
	// gone are nodes that are no part of the cluster.
	gone map[ident.ChassisName]bool
}

func newApart() apart {
	yes, born := true, time.Unix(1_800_000_000, 0)
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: "vmi"}}
	vmi.Status.Phase = kubevirtv1.Running
	pod := func(name, node string, after time.Duration) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{kubevirtv1.AppLabel: "virt-launcher", kubevirtv1.CreatedByLabel: "vmi"}, CreationTimestamp: metav1.NewTime(born.Add(after)),
				OwnerReferences: []metav1.OwnerReference{{APIVersion: kubevirtv1.GroupVersion.String(), Kind: v1alpha1.KindVirtualMachineInstance, Name: "vm", UID: "vmi", Controller: &yes}},
			},
			Spec: corev1.PodSpec{NodeName: node},
		}
	}
	a := apart{vmi: vmi, source: pod("source", "n1", 0), target: pod("target", "n2", time.Minute), vmim: &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m", UID: "m"}, Spec: kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: "vm"},
	}}
	a.target.Labels[kubevirtv1.MigrationJobLabel] = "m"
	return a
}

// observed is what a reconciler has of it.
func (a apart) observed() observed {
	o := observed{vmi: a.vmi, gone: a.gone, rows: map[string]*nbdb.LogicalSwitchPort{podNetwork: {
		Name: string(ident.VMPort("ns", "vm", podNetwork)), Options: map[string]string{ident.OptionRequestedChassis: "n1,n2", ident.OptionActivationStrategy: "rarp"},
		ExternalIDs: map[string]string{ident.KeyMigration: "m", ident.KeyMigrationSource: "n1", ident.KeyMigrationTarget: "n2"},
	}}}
	o.env = migration.Env{Now: time.Unix(1_800_000_100, 0), Chassis: map[ident.ChassisName]bool{"n1": true, "n2": true}}
	for _, pod := range []*corev1.Pod{a.source, a.target} {
		if pod != nil {
			o.pods = append(o.pods, pod)
		}
	}
	if a.vmim != nil {
		o.vmims = append(o.vmims, a.vmim)
	}
	return o
}

// live is an API server that has it, and counts what it is asked.
func (a apart) live(t *testing.T, asked *int, fault error) client.Reader {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), kubevirtv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	b := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			*asked++
			if fault != nil {
				return fault
			}
			return c.Get(ctx, key, o, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			*asked++
			if fault != nil {
				return fault
			}
			return c.List(ctx, list, opts...)
		},
	})
	if a.vmi != nil {
		b = b.WithObjects(a.vmi)
	}
	if a.source != nil {
		b = b.WithObjects(a.source)
	}
	if a.target != nil {
		b = b.WithObjects(a.target)
	}
	if a.vmim != nil {
		b = b.WithObjects(a.vmim)
	}
	return b.Build()
}

// A leader whose cache is older than the rows takes nothing from the target of a migration; one whose cache is right does, and asks the API for nothing else.
func TestTargetIsMissedInTheAPIToo(t *testing.T) {
	all := newApart()
	noTarget, noMigration, neither, unplaced, failed, fine, vanished, ready, ended, fenced := all, all, all, all, all, all, all, all, all, all
	noTarget.target = nil
	noMigration.vmim = nil
	neither.target, neither.vmim = nil, nil
	unplaced.target = all.target.DeepCopy()
	unplaced.target.Spec.NodeName = ""
	failed.vmim = all.vmim.DeepCopy()
	failed.vmim.Status.Phase = kubevirtv1.MigrationFailed
	vanished.vmi = nil
	ready.vmim, ready.vmi = nil, all.vmi.DeepCopy()
	ready.vmi.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{MigrationUID: "m", TargetNodeDomainReadyTimestamp: &metav1.Time{Time: time.Unix(1_800_000_090, 0)}}
	ended.target = all.target.DeepCopy()
	ended.target.Status.Phase = corev1.PodFailed
	fenced.gone = map[ident.ChassisName]bool{"n2": true}
	settled, stopped, empty, waiting, former, begun := all, all, all, all, all, all
	settled.target, settled.vmim = nil, nil
	empty.source, empty.target, empty.vmim = nil, nil, nil
	stopped.vmi, stopped.source, stopped.target, stopped.vmim = nil, nil, nil, nil
	waiting.source, waiting.target, waiting.vmim = all.source.DeepCopy(), nil, nil
	waiting.source.Spec.NodeName = ""
	former.vmi, former.source, former.target, former.vmim = all.vmi.DeepCopy(), nil, nil, nil
	former.vmi.UID, former.vmi.Status.Phase = "former", kubevirtv1.Succeeded
	begun.vmi, begun.target, begun.vmim = all.vmi.DeepCopy(), nil, nil
	elsewhere := all.vmi.DeepCopy()
	elsewhere.Spec.Domain.Devices.AutoattachPodInterface = new(bool)
	begun.vmi.Status.Phase = kubevirtv1.Succeeded
	for name, c := range map[string]struct {
		cache, live apart
		reason      migration.Reason
		waits, asks bool
	}{
		"the target is not in the cache yet":           {noTarget, all, migration.ReasonTargetGone, true, true},
		"nor has it its node there":                    {unplaced, all, migration.ReasonTargetGone, true, true},
		"the migration is not in the cache yet":        {noMigration, all, migration.ReasonMigrationGone, true, true},
		"neither is":                                   {neither, all, migration.ReasonMigrationGone, true, true},
		"the migration is gone, but the VM is ready":   {noMigration, ready, migration.ReasonMigrationGone, true, true},
		"the VMI is gone meanwhile":                    {noTarget, vanished, migration.ReasonTargetGone, true, true},
		"the target is gone":                           {noTarget, noTarget, migration.ReasonTargetGone, false, true},
		"the target has ended, and the cache knows":    {ended, ended, migration.ReasonTargetGone, false, true},
		"the target's node is gone, its pod is not":    {fenced, all, migration.ReasonTargetGone, false, true},
		"the target is another, without a node":        {noTarget, unplaced, migration.ReasonTargetGone, false, true},
		"the migration is gone":                        {noMigration, noMigration, migration.ReasonMigrationGone, false, true},
		"both are gone":                                {neither, neither, migration.ReasonMigrationGone, false, true},
		"the migration has failed while it was missed": {noTarget, failed, migration.ReasonTargetGone, true, true},
		"the migration has failed":                     {failed, all, migration.ReasonMigrationFailed, false, false},
		"the VMI is not in the cache yet":              {stopped, settled, migration.ReasonNoVMI, true, true},
		"its launcher is not in the cache yet":         {empty, settled, migration.ReasonNoLauncher, true, true},
		"nor has that its node there":                  {waiting, settled, migration.ReasonLauncherUnscheduled, true, true},
		"the cache has the VMI that was before":        {former, settled, migration.ReasonVMIFinished, true, true},
		"it begins without the pod network":            {stopped, apart{vmi: elsewhere, source: all.source}, migration.ReasonNoVMI, false, true},
		"the VMI is gone":                              {stopped, stopped, migration.ReasonNoVMI, false, true},
		"its launcher is gone":                         {empty, empty, migration.ReasonNoLauncher, false, true},
		"its launcher has no node":                     {waiting, waiting, migration.ReasonLauncherUnscheduled, false, true},
		"the VMI has finished":                         {begun, begun, migration.ReasonVMIFinished, false, true},
		"nothing is missing":                           {fine, all, migration.ReasonTargetScheduled, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			o, vm := c.cache.observed(), types.NamespacedName{Namespace: "ns", Name: "vm"}
			d := migration.Decide(migration.Observe(o.pods, o.vmi, o.vmims, o.rows, o.bindings).Fenced(o.gone), o.env)
			if d.Reason != c.reason {
				t.Fatalf("decided %s (%s), want %s", d.Phase, d.Reason, c.reason)
			}
			r := &vmReconciler{live: c.live.live(t, &asked, nil), log: slog.New(slog.DiscardHandler)}
			left, err := r.waits(t.Context(), vm, o, d, o.env.Now)
			if err != nil || left > 0 != c.waits {
				t.Errorf("it waits for %s (%v), want it to wait: %v", left, err, c.waits)
			}
			if asked > 0 != c.asks || asked > 3 {
				t.Errorf("the API was asked %d times, want that it was: %v", asked, c.asks)
			}
			if !c.asks {
				return
			}
			r.live = c.live.live(t, &asked, errors.New("the API server is away"))
			if _, err := r.waits(t.Context(), vm, o, d, o.env.Now); err == nil {
				t.Error("without an answer of the API ports are taken from the target")
			}
		})
	}
}
