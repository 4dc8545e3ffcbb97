package service

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var web = Key{"shop", "web"}

// aService is shop/web: TCP port 80, named http.
func aService(change ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", CreationTimestamp: metav1.NewTime(time.Unix(1000, 0))},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, c := range change {
		c(svc)
	}
	return svc
}

// slice has port http 8080/TCP and endpoints in words: ADDRESS NODE STATE, where state is ready, unready, ending (terminating, still serving) or gone (terminating).
func slice(endpoints ...string) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080)), Protocol: ptr(corev1.ProtocolTCP)}}}
	for _, text := range endpoints {
		f := strings.Fields(text)
		if strings.Contains(f[0], ":") {
			es.AddressType = discoveryv1.AddressTypeIPv6
		}
		e := discoveryv1.Endpoint{Addresses: []string{f[0]}, NodeName: &f[1]}
		e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(f[2] == "ready"), Serving: ptr(f[2] == "ready" || f[2] == "ending"), Terminating: ptr(f[2] == "ending" || f[2] == "gone")}
		es.Endpoints = append(es.Endpoints, e)
	}
	return es
}

func slices1(endpoints ...string) []*discoveryv1.EndpointSlice {
	return []*discoveryv1.EndpointSlice{slice(endpoints...)}
}

func ptr[T any](v T) *T { return &v }

// endpointsOf are the endpoints of a Service's first port in words.
func endpointsOf(t *testing.T, x *Index, key Key) []string {
	t.Helper()
	s, ok := x.Service(key)
	if !ok {
		t.Fatalf("there is no Service %s", key)
	}
	out := []string{}
	for _, e := range s.Ports[0].Endpoints {
		text := e.Addr.String() + " " + e.Node
		if e.Anchor != e.Node {
			text += " by " + e.Anchor
		}
		if e.Terminating {
			text += " ending"
		}
		out = append(out, text)
	}
	return out
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}
