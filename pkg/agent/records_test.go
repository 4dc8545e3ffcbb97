package agent

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	cachetesting "k8s.io/client-go/tools/cache/testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// records plays the API server's PortMigrations, with its field selectors and merge patches.
type records struct {
	mu      sync.Mutex
	sources map[string]map[side]*cachetesting.FakeControllerSource
	all     map[types.NamespacedName]*v1alpha1.PortMigration
	// fail is what report returns; writes counts those that it took.
	fail   error
	writes map[side]int
}

func newRecords() *records {
	return &records{
		sources: map[string]map[side]*cachetesting.FakeControllerSource{}, all: map[types.NamespacedName]*v1alpha1.PortMigration{}, writes: map[side]int{},
	}
}

// of is what the agent of a node watches.
func (r *records) of(node string, s side) *cachetesting.FakeControllerSource {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.source(node, s)
}

func (r *records) source(node string, s side) *cachetesting.FakeControllerSource {
	if r.sources[node] == nil {
		r.sources[node] = map[side]*cachetesting.FakeControllerSource{
			sideSource: cachetesting.NewFakeControllerSource(), sideTarget: cachetesting.NewFakeControllerSource(),
		}
	}
	return r.sources[node][s]
}

func keyOf(pm *v1alpha1.PortMigration) types.NamespacedName {
	return types.NamespacedName{Namespace: pm.Namespace, Name: pm.Name}
}

func (r *records) add(pm *v1alpha1.PortMigration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[keyOf(pm)] = pm.DeepCopy()
	r.source(pm.Spec.Source.Node, sideSource).Add(pm.DeepCopy())
	r.source(pm.Spec.Target.Node, sideTarget).Add(pm.DeepCopy())
}

// change is what the controller does to a status.
func (r *records) change(pm *v1alpha1.PortMigration, f func(*v1alpha1.PortMigrationStatus)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.all[keyOf(pm)]
	f(&have.Status)
	r.modified(have)
}

func (r *records) modified(pm *v1alpha1.PortMigration) {
	r.source(pm.Spec.Source.Node, sideSource).Modify(pm.DeepCopy())
	r.source(pm.Spec.Target.Node, sideTarget).Modify(pm.DeepCopy())
}

func (r *records) remove(pm *v1alpha1.PortMigration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, keyOf(pm))
	r.source(pm.Spec.Source.Node, sideSource).Delete(pm.DeepCopy())
	r.source(pm.Spec.Target.Node, sideTarget).Delete(pm.DeepCopy())
}

// report is a Reporter.
func (r *records) report(_ context.Context, key types.NamespacedName, part v1alpha1.PortMigrationStatus) error {
	patch, err := json.Marshal(part)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	have := r.all[key]
	if have == nil {
		return apierrors.NewNotFound(schema.GroupResource{Group: "godwit.dev", Resource: resourceMigrations}, key.Name)
	}
	if err := json.Unmarshal(patch, &have.Status); err != nil { // into what is there: as a merge patch without nulls
		return err
	}
	if part.Source != nil {
		r.writes[sideSource]++
	}
	if part.Target != nil {
		r.writes[sideTarget]++
	}
	r.modified(have)
	return nil
}

func (r *records) status(pm *v1alpha1.PortMigration) v1alpha1.PortMigrationStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return *r.all[keyOf(pm)].Status.DeepCopy()
}

func (r *records) written(s side) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writes[s]
}

// reported waits until one side was written.
func (r *records) reported(t *testing.T, pm *v1alpha1.PortMigration, s side) v1alpha1.Observation {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if o := observation(&v1alpha1.PortMigration{Status: r.status(pm)}, s); o != nil {
			return *o
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("status.%s of PortMigration %s was not written", s, pm.Name)
	return v1alpha1.Observation{}
}

// whole waits for the target's report that has the VM's first frame: an agent that is slow reports the announcement before that.
func (r *records) whole(t *testing.T, pm *v1alpha1.PortMigration) (o v1alpha1.Observation) {
	t.Helper()
	eventually(t, "a report with a first frame", func() error {
		if o = r.reported(t, pm, sideTarget); o.FirstFrame == nil {
			return errors.New("the VM has announced itself and sent nothing yet")
		}
		return nil
	})
	return o
}

// A record in another namespace that names a migration's UID has no say in it: the VM is announced, and what was seen goes to its own record.
func TestRecordOfAnotherNamespace(t *testing.T) {
	w := newWatched(t)
	forged := w.pm.DeepCopy()
	forged.Namespace, forged.Status.Result = "other", v1alpha1.MigrationSucceeded
	w.records.add(forged)
	eventually(t, "the other namespace's record", func() error {
		if len(w.observer.migrations[sideTarget].GetStore().List()) == 0 {
			return errors.New("the observer has not seen it")
		}
		return nil
	})
	w.target(t)
	w.pods.Modify(readyPod())
	eventually(t, "announcement", func() error {
		if w.links.sends() == 0 {
			return errors.New("none")
		}
		return nil
	})
	w.records.add(w.pm)
	if got := w.records.reported(t, w.pm, sideTarget); got.Announced == nil {
		t.Errorf("reported %+v, want the announcement", got)
	}
	if got := w.records.status(forged); got.Target != nil {
		t.Errorf("reported to the other namespace's record: %+v", got.Target)
	}
}
