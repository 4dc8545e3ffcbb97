package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// addServices gives each pod a Service of its own, with its ports.
func (w *policyWorld) addServices(t *testing.T) {
	t.Helper()
	for i := range w.pods {
		p := &w.pods[i]
		svc := policyService(p.Namespace, p.Name, map[string]string{"pod": p.Name})
		open(t, svc, nil)
		p.clusterIPs = parsed(svc.Spec.ClusterIPs)
	}
}

// policyService has the ports of policyPod.
func policyService(ns, name string, selector map[string]string) *corev1.Service {
	families := corev1.IPFamilyPolicyPreferDualStack
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{Selector: selector, IPFamilyPolicy: &families}}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		for _, port := range []int32{7, 8081} {
			svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{
				Name: fmt.Sprintf("%s-%d", strings.ToLower(string(protocol)), port), Protocol: protocol, Port: port, TargetPort: intstr.FromInt32(port),
			})
		}
	}
	return svc
}

// A client outside that comes by a node port is judged like any other: with its own address where the Service keeps it, else with the address of the node that passes it on, which
// no rule but one for everybody permits, and which is not exempt as the node itself is.
func TestPolicyNodePort(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "shop", "node1"))
	pod := ready(t, ns, 1)["shop"]
	services := map[corev1.ServiceExternalTrafficPolicy]*corev1.Service{}
	for _, policy := range []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal} {
		svc := policyService(ns, strings.ToLower(string(policy)), map[string]string{"app": "shop"})
		svc.Spec.Ports = svc.Spec.Ports[:1]
		svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, policy
		open(t, svc, nil)
		services[policy] = svc
	}
	expect := func(kept, passedOn string) {
		t.Helper()
		eventually(t, settleTimeout, func(ctx context.Context) error {
			if err := askedFromOutside(ctx, services[corev1.ServiceExternalTrafficPolicyLocal], []string{pod.Node}, kept); err != nil {
				return err
			}
			return askedFromOutside(ctx, services[corev1.ServiceExternalTrafficPolicyCluster], cluster.NodeNames(), passedOn)
		})
	}
	const permitted, denied = "ok ", "failed "
	expect(permitted, permitted)
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "deny"}, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}
	if err := cluster.api.Create(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	expect(denied, denied)
	allow := networkingv1.NetworkPolicyIngressRule{}
	for _, ip := range cluster.OutsideIPs() {
		allow.From = append(allow.From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("%s/%d", ip, ip.BitLen())}})
	}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{allow}
	if err := cluster.api.Update(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	expect(permitted, denied)
}

// askedFromOutside returns an error unless probe says that word of the Service's port on each of these nodes.
func askedFromOutside(ctx context.Context, svc *corev1.Service, nodes []string, word string) error {
	var targets []string
	for _, node := range nodes {
		for _, ip := range cluster.NodeIPs(node) {
			targets = append(targets, target("tcp", ip, uint16(svc.Spec.Ports[0].NodePort)))
		}
	}
	out, err := cluster.Exec(ctx, "outside", append([]string{"/proc/1/exe", "probe", "--timeout", "1s"}, targets...)...)
	if err != nil && out == "" {
		return err
	}
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, word) {
			return fmt.Errorf("Service %s asked from outside: %s, want %s", svc.Name, strings.TrimSpace(line), word) //nolint:staticcheck // a kind
		}
	}
	if n := strings.Count(out, "\n"); n < len(targets) {
		return fmt.Errorf("%d answers to %d questions", n, len(targets))
	}
	return nil
}
