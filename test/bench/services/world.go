package main

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/bench/central"
)

const (
	namespace = "bench"
	// servicePort is where Services are reached, targetPort where their endpoints are.
	servicePort, targetPort = 80, 8080
	// The bounds keep addresses in 10.128.0.0/12 for endpoints, in 10.144.0.0/16 for Subnets, and ClusterIPs in serviceRange.
	maxServices, maxEndpoints, maxSubnets = 20000, 50, 250
	serviceRange                          = "10.96.0.0/16"
)

// addressRange has room for all Services; that of the API server's test environment has 254.
func addressRange() *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: namespace}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceRange}}}
}

func serviceName(i int) string { return fmt.Sprintf("s%05d", i) }

func newService(i int) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: serviceName(i)},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: servicePort, TargetPort: intstr.FromInt32(targetPort)}}},
	}
}

// rowName is that of the Service's load balancer.
func rowName(i int) string { return string(ident.LoadBalancer(namespace, serviceName(i), "tcp")) }

// endpointAddress is the address of one of a Service's endpoints, no other's.
func endpointAddress(service, endpoint int) string {
	n := service*maxEndpoints + endpoint
	return fmt.Sprintf("10.%d.%d.%d", 128+n>>16, n>>8&255, n&255)
}

// newSlice is what the endpoints controller makes of a Service's pods.
func (c config) newSlice(i int) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: serviceName(i) + "-0", Labels: map[string]string{discoveryv1.LabelServiceName: serviceName(i)}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new(string), Port: new(int32(targetPort)), Protocol: new(corev1.ProtocolTCP)}},
	}
	for e := range c.endpoints {
		node := central.NodeName((i + e) % c.nodes)
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{endpointAddress(i, e)}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	return out
}

func newSubnet(i int) *v1alpha1.Subnet {
	return &v1alpha1.Subnet{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%03d", i)},
		Spec: v1alpha1.SubnetSpec{
			CIDRs: []string{fmt.Sprintf("10.144.%d.0/24", i)}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"bench": fmt.Sprint(i)}},
		},
	}
}
