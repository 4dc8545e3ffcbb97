package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// A migration's target pod goes while it waits, and KubeVirt makes another: each has a record, and the second one's port is opened on the signal.
func TestSwitchoverTargetMadeAnew(t *testing.T) {
	listened(t)
	vm := bootVM(t, lab.VMOptions{Name: "switchover-anew", Node: "node1"})
	from := peer(t, "node3")
	var first, second *v1alpha1.PortMigration
	vm.watch(t, from, func() {
		g := vm.begin(t, lab.MigrateOptions{To: "node2", Hold: []kubevirt.Stage{kubevirt.StageScheduling, kubevirt.StageResume}})
		prepared := func(pm **v1alpha1.PortMigration) {
			t.Helper()
			eventually(t, 30*time.Second, func(ctx context.Context) (err error) {
				if *pm, err = findRecord(ctx, g); err != nil {
					return err
				}
				if _, ok := (*pm).Status.Stage(v1alpha1.StagePrepared); !ok || (*pm).Status.Over() {
					return fmt.Errorf("PortMigration %s: %s: want it prepared", (*pm).Name, asJSON((*pm).Status))
				}
				return nil
			})
		}
		prepared(&first)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: first.Namespace, Name: first.Spec.Target.Pod.Name}}
		if err := cluster.api.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
		if err := g.Hold(t.Context(), kubevirt.StageResume); err != nil {
			t.Fatal(err)
		}
		prepared(&second)
		portOpened(t, g)
		if err := g.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		vm.succeeded(t, g)
		eventually(t, 10*time.Second, func(ctx context.Context) (err error) {
			if second, err = findRecord(ctx, g); err == nil {
				if st := second.Status; st.Result != v1alpha1.MigrationSucceeded || st.Target == nil || st.Target.ActivatedBy != v1alpha1.ActivatedBySignal {
					err = fmt.Errorf("PortMigration %s: %s: want it to have succeeded, by the signal", second.Name, asJSON(st))
				}
			}
			return err
		})
	})
	vm.untouched(t)
	if err := cluster.api.Get(t.Context(), client.ObjectKeyFromObject(first), first); err != nil {
		t.Fatal(err)
	}
	if st := first.Status; st.Result != v1alpha1.MigrationFailed || st.Reason != "TargetGone" || first.Spec.Target.Pod.UID == second.Spec.Target.Pod.UID {
		t.Errorf("the first target's record: %s", asJSON(st))
	}
	t.Logf("first %s, second %s", asJSON(first.Status), asJSON(second.Status))
	consistent(t)
}
