package controller

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
)

// handingTo is a reconciler of VM ns/vm, whose migration "m" has told so much of its connections.
func handingTo(t *testing.T, told *v1alpha1.Connections, faults interceptor.Funcs) (*vmReconciler, func() v1alpha1.PortMigrationStatus) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	pm := &v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m"}, Spec: v1alpha1.PortMigrationSpec{
		VMI: v1alpha1.ObjectName{Name: "vm"}, Migration: v1alpha1.ObjectName{Name: "m", UID: "m"},
	}}
	if told != nil {
		pm.Status.Source = &v1alpha1.Observation{Connections: told}
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(pm).WithStatusSubresource(pm).WithInterceptorFuncs(faults).
		WithIndex(pm, indexVMI, func(o client.Object) []string { return []string{vmOf(o).Name} }).Build()
	r := &vmReconciler{api: api, live: api, log: slog.New(slog.NewTextHandler(t.Output(), nil)), held: map[types.NamespacedName]hold{}, events: events.NewFakeRecorder(2)}
	return r, func() v1alpha1.PortMigrationStatus {
		got := &v1alpha1.PortMigration{}
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(pm), got); err != nil {
			t.Fatal(err)
		}
		return got.Status
	}
}

func TestHoldsForConnections(t *testing.T) {
	vm := types.NamespacedName{Namespace: "ns", Name: "vm"}
	now := metav1.NewMicroTime(time.Now())
	commit := migration.Decision{Phase: migration.Committed, Migration: "m", Source: migration.Launcher{Chassis: "n1"}}
	other, gone, prepared := commit, commit, commit
	other.Migration, gone.Source, prepared.Phase = "other", migration.Launcher{}, migration.Prepared
	for name, c := range map[string]struct {
		told *v1alpha1.Connections
		d    migration.Decision
		want bool
	}{
		"nobody hands over":      {nil, commit, false},
		"it has not begun":       {&v1alpha1.Connections{}, commit, false},
		"it has begun":           {&v1alpha1.Connections{Began: &now}, commit, true},
		"it has ended":           {&v1alpha1.Connections{Began: &now, Ended: &now}, commit, false},
		"another migration's":    {&v1alpha1.Connections{Began: &now}, other, false},
		"the source is gone":     {&v1alpha1.Connections{Began: &now}, gone, false},
		"it is another decision": {&v1alpha1.Connections{Began: &now}, prepared, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, status := handingTo(t, c.told, interceptor.Funcs{})
			start := time.Now()
			left, err := r.holds(t.Context(), vm, c.d, start)
			if err != nil || left > 0 != c.want || left > handoffPatience {
				t.Errorf("held for %s (%v), want it held: %v", left, err, c.want)
			}
			st := status()
			if _, ready := st.Stage(v1alpha1.StageReady); ready != c.want {
				t.Errorf("the source's agent is told that the VM is ready: %v, want %v", ready, c.want)
			}
			for _, after := range []time.Duration{handoffPatience, handoffPatience + conflictDelay} { // the rows may not be written at once
				if left, err := r.holds(t.Context(), vm, c.d, start.Add(after)); left != 0 || err != nil {
					t.Errorf("after %s held for %s (%v)", after, left, err)
				}
			}
		})
	}
}

// A migration after one that was held to the end is held too.
func TestHoldsTheNextMigration(t *testing.T) {
	now := metav1.NewMicroTime(time.Now())
	r, _ := handingTo(t, &v1alpha1.Connections{Began: &now}, interceptor.Funcs{})
	vm, start := types.NamespacedName{Namespace: "ns", Name: "vm"}, time.Now()
	r.held[vm] = hold{migration: "before", since: start.Add(-time.Hour)}
	left, err := r.holds(t.Context(), vm, migration.Decision{Phase: migration.Committed, Migration: "m", Source: migration.Launcher{Chassis: "n1"}}, start)
	if err != nil || left <= 0 || left > handoffPatience {
		t.Errorf("held for %s (%v), want %s at most", left, err, handoffPatience)
	}
}

// Rows wait for nothing that the API does not do.
func TestHoldsNoLongerWithoutTheAPI(t *testing.T) {
	now := metav1.NewMicroTime(time.Now())
	r, _ := handingTo(t, &v1alpha1.Connections{Began: &now}, interceptor.Funcs{
		SubResourcePatch: func(context.Context, client.Client, string, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
			return errors.New("the API server is away")
		},
	})
	vm, commit := types.NamespacedName{Namespace: "ns", Name: "vm"}, migration.Decision{Phase: migration.Committed, Migration: "m", Source: migration.Launcher{Chassis: "n1"}}
	start := time.Now()
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {handoffPatience / 2, true}, {handoffPatience, false}} {
		if left, err := r.holds(t.Context(), vm, commit, start.Add(c.after)); err != nil || left > 0 != c.want {
			t.Errorf("after %s held for %s (%v), want it held: %v", c.after, left, err, c.want)
		}
	}
}

func TestConnectionsLeftAreTold(t *testing.T) {
	for name, c := range map[string]struct {
		st   v1alpha1.PortMigrationStatus
		want int
	}{
		"none":    {v1alpha1.PortMigrationStatus{Source: &v1alpha1.Observation{Connections: &v1alpha1.Connections{}}, Target: &v1alpha1.Observation{}}, 0},
		"left":    {v1alpha1.PortMigrationStatus{Source: &v1alpha1.Observation{Connections: &v1alpha1.Connections{Left: 1}}}, 1},
		"refused": {v1alpha1.PortMigrationStatus{Target: &v1alpha1.Observation{Connections: &v1alpha1.Connections{Refused: 1}}}, 1},
	} {
		recorder := events.NewFakeRecorder(2)
		r := &vmReconciler{events: recorder}
		r.tellLeft(&v1alpha1.PortMigration{}, c.st)
		if got := len(recorder.Events); got != c.want {
			t.Errorf("%s: %d events, want %d", name, got, c.want)
		}
	}
}
