package controller

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// What is wrong with a policy is told once for each version of it, however often its rows cannot be written.
func TestPolicyProblemsToldOnce(t *testing.T) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{}}}}
	api, recorder := fake.NewClientBuilder().WithObjects(np).Build(), events.NewFakeRecorder(32)
	restored := make(chan struct{})
	close(restored)
	// Nobody commits what is written to this database.
	r := &policyReconciler{
		api: api, nb: &ovn.NB{}, policies: &policies{restored: restored, index: policy.New(policy.Config{})},
		events: recorder, metrics: newMetrics(prometheus.NewRegistry()), log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	attempts := func(want int) {
		t.Helper()
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(np)}); err == nil {
				t.Error("the write succeeded")
			}
			cancel()
		}
		var counter dto.Metric
		if err := r.metrics.policyProblems.WithLabelValues(string(policy.ReasonInvalidPeer)).Write(&counter); err != nil {
			t.Fatal(err)
		}
		if n, counted := len(recorder.Events), counter.GetCounter().GetValue(); n != want || counted != float64(want) {
			t.Errorf("%d events, the metric is %v: want %d", n, counted, want)
		}
	}
	attempts(1)
	np.Annotations = map[string]string{"changed": "yes"}
	if err := api.Update(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	attempts(2)
	if err := api.Delete(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	attempts(2)
	np.ResourceVersion = ""
	if err := api.Create(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	attempts(3)
}
