package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A claim that the API does not ask for is undone within seconds, and told; one that it asks for stays.
func TestForbiddenClaimIsUndone(t *testing.T) {
	t.Parallel()
	e := claimsEnv(t)
	row, uuid, claimed := claimRow, e.chassisRow(t), e.claims(t)
	e.central.Southbound(t, "set", "port_binding", row("a"), "chassis="+uuid("n2"))
	e.central.Southbound(t, "set", "port_binding", row("b"), "chassis="+uuid("n1"), "additional_chassis="+uuid("n2"))
	undone := func(columns ...[2]string) {
		t.Helper()
		awaitUndone(t, claimed, columns...)
	}
	undone([2]string{"a", "chassis"}, [2]string{"b", "additional_chassis"})
	if got := claimed("b", "chassis"); got != uuid("n1") {
		t.Errorf("the claim that is asked for is %q, want n1's", got)
	}
	// A node that is down may have claims left of before, and this one is new.
	e.central.Southbound(t, "set", "port_binding", row("a"), "chassis="+uuid("n3"))
	undone([2]string{"a", "chassis"})
	eventually(t, func() error {
		told := map[string]bool{}
		var list corev1.EventList
		if err := e.api.List(t.Context(), &list); err != nil {
			return err
		}
		for i := range list.Items {
			if ev := &list.Items[i]; ev.Reason == "ForbiddenClaim" {
				told[ev.InvolvedObject.Kind+" "+ev.InvolvedObject.Name] = true
			}
		}
		if !told["Node n2"] || !told["Node n3"] || !told["Pod a"] || !told["Pod b"] {
			return fmt.Errorf("events tell of %v", told)
		}
		return nil
	})
}

// While northd is away, a chassis keeps what the southbound database still asks for; one that has only written there that it is asked for does not.
func TestClaimsWhileNorthdIsAway(t *testing.T) {
	t.Parallel()
	e := claimsEnv(t)
	uuid, claimed := e.chassisRow(t), e.claims(t)
	e.central.PauseNorthd(t)
	e.central.Southbound(t, "set", "port_binding", claimRow("b"), "chassis="+uuid("n2"), "requested_chassis="+uuid("n2"))
	for range 2 { // whoever had looked at the one three times had looked at the other as often before the second time
		e.central.Southbound(t, "set", "port_binding", claimRow("a"), "chassis="+uuid("n2"), "options:requested-chassis=n2")
		awaitUndone(t, claimed, [2]string{"a", "chassis"})
	}
	if got := claimed("b", "chassis"); got != uuid("n2") {
		t.Errorf("the claim for which northd has not asked elsewhere yet is %q, want n2's", got)
	}
	e.central.ResumeNorthd(t)
	awaitUndone(t, claimed, [2]string{"b", "chassis"})
}

// claimsEnv has three nodes, and pods a and b on n1, which the southbound database knows.
func claimsEnv(t *testing.T) *env {
	t.Helper()
	e := newEnv(t)
	e.start(t)
	for _, n := range []string{"n1", "n2", "n3"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.nodeReady(t, "n2")
	e.defaultSubnet(t)
	e.namespace(t, "pods", nil)
	uuid, claimed := e.chassisRow(t), e.claims(t)
	for _, p := range []string{"a", "b"} {
		e.pod(t, key("pods", p), "n1")
		e.served(t, key("pods", p))
	}
	for _, pod := range []string{"a", "b"} {
		eventually(t, func() error {
			if got := claimed(pod, "requested_chassis"); got != uuid("n1") {
				return fmt.Errorf("the southbound database asks for chassis %q", got)
			}
			return nil
		})
	}
	return e
}

func claimRow(pod string) string { return "pod/pods/" + pod + "/default" }

// chassisRow tells the UUID of a chassis.
func (e *env) chassisRow(t *testing.T) func(chassis string) string {
	return func(chassis string) string {
		return strings.TrimSpace(e.central.Southbound(t, "--bare", "--columns=_uuid", "find", "chassis", "name="+chassis))
	}
}

// claims tells a column of a pod's Port_Binding.
func (e *env) claims(t *testing.T) func(pod, column string) string {
	return func(pod, column string) string {
		return strings.TrimSpace(e.central.Southbound(t, "--bare", "--columns="+column, "find", "port_binding", "logical_port="+claimRow(pod)))
	}
}

// awaitUndone waits until columns of pods' Port_Bindings are empty.
func awaitUndone(t *testing.T, claimed func(pod, column string) string, columns ...[2]string) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		var left []string
		for _, c := range columns {
			if got := claimed(c[0], c[1]); got != "" {
				left = append(left, c[0]+" "+c[1])
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("these are still claimed by whom the API does not ask: %v", left)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// nodeReady lets a node be ready, as its kubelet says.
func (e *env) nodeReady(t *testing.T, name string) {
	t.Helper()
	var n corev1.Node
	if err := e.api.Get(t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
		t.Fatal(err)
	}
	was := n.DeepCopy()
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if err := e.api.Status().Patch(t.Context(), &n, client.MergeFrom(was)); err != nil { // the controller writes the Node too
		t.Fatal(err)
	}
}
