package integration

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// A VMIM that is Scheduling before its target pod can be seen, or before the pod has a node, is served when it can: seen never to be at the best-known peer.
func TestChaosPeerSchedulingFirst(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.installKubeVirt(t)
	e.namespace(t, "first", nil)
	for _, c := range []struct {
		name string
		// phase is as far as the migration is when its pod comes, unscheduled whether the pod has no node at first.
		phase       kubevirtv1.VirtualMachineInstanceMigrationPhase
		unscheduled bool
	}{
		{"scheduling", kubevirtv1.MigrationScheduling, false},
		{"scheduling-unscheduled", kubevirtv1.MigrationScheduling, true},
		{"scheduled", kubevirtv1.MigrationScheduled, false},
		{"target-ready", kubevirtv1.MigrationTargetReady, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			vm := key("first", c.name)
			vmi := e.vmi(t, vm)
			source := e.launcher(t, vmi, c.name+"-source", "n1", nil)
			e.asks(t, vm, "n1", "")
			vmim := e.migration(t, vmi)
			e.migrationPhase(t, vmim, c.phase)
			time.Sleep(time.Until(source.CreationTimestamp.Add(time.Second))) // a target is younger, and creation times have whole seconds
			e.asks(t, vm, "n1", "")
			node := "n2"
			if c.unscheduled {
				node = ""
			}
			target := e.launcher(t, vmi, c.name+"-target", node, vmim)
			if c.unscheduled {
				time.Sleep(200 * time.Millisecond) // the controller has decided without a node
				bind := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: target.Namespace, Name: target.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: "n2"}}
				if err := e.api.SubResource("binding").Create(t.Context(), target, bind); err != nil {
					t.Fatal(err)
				}
			}
			e.asks(t, vm, "n1,n2", "rarp")
			e.mayAttach(t, target, v1alpha1.Attach{Chassis: "n2", Migration: string(vmim.UID), Activation: "rarp"})
			e.migrationPhase(t, vmim, kubevirtv1.MigrationSucceeded)
			e.asks(t, vm, "n2", "")
		})
	}
}
