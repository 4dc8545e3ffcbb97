// Package oracle says what becomes of a connection to a Service, by the words of the Service API (k8s.io/api/core/v1, the pages "Service" and "Virtual IPs and Service
// Proxies" of Kubernetes' documentation) and by nothing else: it knows nothing of the product, and reads pods where the product reads EndpointSlices. Tests ask it what they are to find.
//
// Where the text leaves a choice the oracle admits each of its outcomes, and Expectation.Why says so.
package oracle
