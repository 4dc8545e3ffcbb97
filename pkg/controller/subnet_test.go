package controller

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ipam"
)

// A Subnet over the ClusterIPs would take them from all Services: it does not come into the network. One that is in it stays, as does any where somebody else serves Services.
func TestSubnetOverClusterIPs(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	service := func(name string, ips ...string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ips[0], ClusterIPs: ips}}
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(service("headless", corev1.ClusterIPNone), service("web", "10.96.1.1", "fd96::1")).Build()
	join, err := ipam.ParseCIDRs([]string{"100.64.0.0/16", "fd64::/64"})
	if err != nil {
		t.Fatal(err)
	}
	served := &subnetReconciler{api: api, join: ipam.Spec{CIDRs: join}, services: true, log: slog.Default()}
	elsewhere := &subnetReconciler{api: api, join: ipam.Spec{CIDRs: join}, log: slog.Default()}
	ready := func(reason string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: reason}}
	}
	for name, c := range map[string]struct {
		r          *subnetReconciler
		cidr       string
		conditions []metav1.Condition
		want       string // empty if it comes into the network
	}{
		"around them":            {served, "10.0.0.0/9", nil, "10.0.0.0/9 has the ClusterIP 10.96.1.1 of Service shop/web in it"},
		"the second family":      {served, "fd96::/64", nil, "ClusterIP fd96::1 of Service shop/web"},
		"beside them":            {served, "10.97.0.0/16", nil, ""},
		"refused before":         {served, "10.96.0.0/16", ready(v1alpha1.ReasonOverlaps), "shop/web"},
		"pods have addresses":    {served, "10.96.0.0/16", ready(reasonReady), ""},
		"Services are others'":   {elsewhere, "10.96.0.0/16", nil, ""},
		"beside what is refused": {served, "10.96.0.0/24", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{c.cidr}}, Status: v1alpha1.SubnetStatus{Conditions: c.conditions}}
			cidrs, err := ipam.ParseCIDRs(s.Spec.CIDRs)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.r.overlap(t.Context(), s, cidrs)
			if err != nil || (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
			if _, cond, err := c.r.decide(t.Context(), s); c.want != "" && (err != nil || cond.Reason != v1alpha1.ReasonOverlaps) {
				t.Errorf("condition %+v, %v; want %s", cond, err, v1alpha1.ReasonOverlaps)
			}
		})
	}
}
