package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// indexMigration finds a PortMigration by its namespace and its migration's UID.
const indexMigration = "migration"

// migrations holds the PortMigrations that begin or end on the node.
type migrations map[side]cache.SharedIndexInformer

// newMigrations calls changed after any change; changed must return at once.
func newMigrations(src Sources, changed func()) (migrations, error) {
	m := migrations{}
	var errs []error
	for s, lw := range map[side]cache.ListerWatcher{sideSource: src.MigrationsFrom, sideTarget: src.MigrationsTo} {
		m[s] = cache.NewSharedIndexInformer(lw, &v1alpha1.PortMigration{}, 0, cache.Indexers{indexMigration: func(obj any) ([]string, error) {
			pm, ok := obj.(*v1alpha1.PortMigration)
			if !ok {
				return nil, nil
			}
			return []string{migrationIndex(pm.Namespace, pm.Spec.Migration.UID)}, nil
		}})
		_, err := m[s].AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() }, UpdateFunc: func(any, any) { changed() }, DeleteFunc: func(any) { changed() },
		})
		errs = append(errs, err, m[s].SetTransform(trimMigration))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("set informers of PortMigrations up: %w", err)
	}
	return m, nil
}

// run runs the informers until ctx ends. Nothing waits for them: pods get their network without.
func (m migrations) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, informer := range m {
		wg.Go(func() { informer.RunWithContext(ctx) })
	}
	wg.Wait()
}

func migrationIndex(namespace string, uid types.UID) string { return namespace + "/" + string(uid) }

// get is nil if there is none.
func (m migrations) get(key watchKey) *v1alpha1.PortMigration {
	all := m.of(key.side, key.namespace, key.migration)
	if i := slices.IndexFunc(all, func(pm *v1alpha1.PortMigration) bool { return pm.Spec.Target.Pod.UID == key.target }); i >= 0 {
		return all[i]
	}
	return nil
}

// of lists those of one migration: KubeVirt may have made its target anew, and one at most is not over.
func (m migrations) of(s side, namespace string, uid types.UID) (out []*v1alpha1.PortMigration) {
	objs, err := m[s].GetIndexer().ByIndex(indexMigration, migrationIndex(namespace, uid))
	if err != nil { // there is no such index
		return nil
	}
	for _, obj := range objs {
		if pm, ok := obj.(*v1alpha1.PortMigration); ok {
			out = append(out, pm)
		}
	}
	return out
}

// coming is what a migration that comes here is about now; one that is over if all are, nil if there is none.
func (m migrations) coming(namespace string, uid types.UID) (found *v1alpha1.PortMigration) {
	for _, pm := range m.of(sideTarget, namespace, uid) {
		if found == nil || found.Status.Over() {
			found = pm
		}
	}
	return found
}

// all lists those of a side that are on record.
func (m migrations) all(s side) []*v1alpha1.PortMigration {
	var out []*v1alpha1.PortMigration
	for _, obj := range m[s].GetStore().List() {
		if pm, ok := obj.(*v1alpha1.PortMigration); ok {
			out = append(out, pm)
		}
	}
	return out
}

// running lists those that are not over.
func (m migrations) running(s side) []*v1alpha1.PortMigration {
	return slices.DeleteFunc(m.all(s), func(pm *v1alpha1.PortMigration) bool { return pm.Status.Over() })
}

// comes says whether a migration may still end with this port, or has failed, so that a port that was taken from OVN is not to be given back. Before all are listed it may be so of every port.
func (m migrations) comes(p ovs.PortStatus) bool {
	return !m[sideTarget].HasSynced() || slices.ContainsFunc(m.all(sideTarget), func(pm *v1alpha1.PortMigration) bool {
		return pm.Status.Result != v1alpha1.MigrationSucceeded && hasPort(pm, string(p.ID)) && launcherOf(pm, sideTarget).key.String() == p.Owner.Pod
	})
}

// reached reports whether the controller noted a stage.
func reached(pm *v1alpha1.PortMigration, stage v1alpha1.StageName) bool {
	_, ok := pm.Status.Stage(stage)
	return ok
}

func trimMigration(obj any) (any, error) {
	if pm, ok := obj.(*v1alpha1.PortMigration); ok {
		pm.ManagedFields = nil
	}
	return obj, nil
}
