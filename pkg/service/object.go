package service

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ProxyLabel on a Service, whatever its value, says that somebody else serves it (pkg/proxy/apis in kubernetes/kubernetes).
const ProxyLabel = "service.kubernetes.io/service-proxy-name"

// Of is the Service that an EndpointSlice belongs to, without a name if to none.
func Of(endpointSlice metav1.Object) Key {
	return Key{Namespace: endpointSlice.GetNamespace(), Name: endpointSlice.GetLabels()[discoveryv1.LabelServiceName]}
}

// Trim keeps of a Service or an EndpointSlice what an Index reads, for caches (it is a cache.TransformFunc): a cluster has an endpoint for every pod that serves
// something. Other objects stay as they are.
func Trim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Service:
		o.ManagedFields, o.Annotations, o.OwnerReferences, o.Finalizers = nil, nil, nil, nil
		o.Spec.Selector, o.Status.Conditions = nil, nil
	case *discoveryv1.EndpointSlice:
		o.ManagedFields, o.Annotations, o.OwnerReferences = nil, nil, nil
		o.Labels = map[string]string{discoveryv1.LabelServiceName: o.Labels[discoveryv1.LabelServiceName]}
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			*e = discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: e.Conditions, NodeName: e.NodeName}
		}
	}
	return obj, nil
}
