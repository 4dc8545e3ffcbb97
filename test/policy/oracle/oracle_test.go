package oracle

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// The recipes of the API's own documentation, with what they say.
func TestJudge(t *testing.T) {
	db := &Pod{Namespace: "default", Name: "db", Labels: map[string]string{"role": "db"}, Node: "n1",
		Ports: []corev1.ContainerPort{{Name: "redis", ContainerPort: 6379}}}
	front := &Pod{Namespace: "default", Name: "front", Labels: map[string]string{"role": "frontend"}, Node: "n2"}
	other := &Pod{Namespace: "myproject", Name: "other", Node: "n2"}
	end := func(p *Pod, addr string) End { return End{Addr: netip.MustParseAddr(addr), Pod: p} }
	ends := map[string]End{
		"db": end(db, "10.0.0.1"), "front": end(front, "10.0.0.2"), "other": end(other, "10.0.0.3"),
		"172.17.9.9": end(nil, "172.17.9.9"), "172.17.1.9": end(nil, "172.17.1.9"),
		"n1": {Addr: netip.MustParseAddr("192.0.2.1"), Node: "n1"}, "n2": {Addr: netip.MustParseAddr("192.0.2.2"), Node: "n2"},
	}
	const documented = `
metadata: {name: test-network-policy, namespace: default}
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {project: myproject}}
    - podSelector: {matchLabels: {role: frontend}}
    ports: [{protocol: TCP, port: 6379}]
  egress:
  - to: [{ipBlock: {cidr: 172.17.9.0/24}}]
    ports: [{port: 5978, endPort: 5980}]
`
	for _, tc := range []struct {
		name, policy, from, to string
		protocol               corev1.Protocol
		port                   int32
		want                   bool
	}{
		{"a selected pod of the namespace", documented, "front", "db", corev1.ProtocolTCP, 6379, true},
		{"another port", documented, "front", "db", corev1.ProtocolTCP, 80, false},
		{"another protocol", documented, "front", "db", corev1.ProtocolUDP, 6379, false},
		{"a selected namespace", documented, "other", "db", corev1.ProtocolTCP, 6379, true},
		{"in the block", documented, "172.17.9.9", "db", corev1.ProtocolTCP, 6379, true},
		{"in the exception", documented, "172.17.1.9", "db", corev1.ProtocolTCP, 6379, false},
		{"the pod's node", documented, "n1", "db", corev1.ProtocolTCP, 80, true},
		{"another node", documented, "n2", "db", corev1.ProtocolTCP, 6379, false},
		{"out, in the range", documented, "db", "172.17.9.9", corev1.ProtocolTCP, 5980, true},
		{"out, over the range", documented, "db", "172.17.9.9", corev1.ProtocolTCP, 5981, false},
		{"out, to a pod", documented, "db", "front", corev1.ProtocolTCP, 5978, false},
		{"a pod itself", documented, "db", "db", corev1.ProtocolTCP, 1, true},
		{"default deny: a null rule list", "metadata: {namespace: default}\nspec: {podSelector: {}}", "other", "db", corev1.ProtocolTCP, 6379, false},
		{"default deny is ingress alone", "metadata: {namespace: default}\nspec: {podSelector: {}}", "db", "other", corev1.ProtocolTCP, 6379, true},
		{"an empty rule is everything", "metadata: {namespace: default}\nspec: {podSelector: {}, ingress: [{}]}", "n2", "db", corev1.ProtocolSCTP, 9, true},
		{"an egress section affects egress", "metadata: {namespace: default}\nspec: {podSelector: {}, egress: [{ports: [{port: 1}]}]}", "db", "other", corev1.ProtocolTCP, 2, false},
		{"a named port", "metadata: {namespace: default}\nspec: {podSelector: {}, ingress: [{ports: [{port: redis}]}]}", "other", "db", corev1.ProtocolTCP, 6379, true},
		{"a named port at another number", "metadata: {namespace: default}\nspec: {podSelector: {}, ingress: [{ports: [{port: redis}]}]}", "other", "db", corev1.ProtocolTCP, 6380, false},
	} {
		var np networkingv1.NetworkPolicy
		if err := yaml.UnmarshalStrict([]byte(tc.policy), &np); err != nil {
			t.Fatal(err)
		}
		c := Cluster{
			Namespaces: map[string]map[string]string{"default": nil, "myproject": {"project": "myproject"}},
			Policies:   []*networkingv1.NetworkPolicy{&np},
		}
		got := c.Judge(Flow{From: ends[tc.from], To: ends[tc.to], Protocol: tc.protocol, Port: tc.port})
		if got.Allowed != tc.want {
			t.Errorf("%s: %+v, want %v", tc.name, got, tc.want)
		}
	}
}
