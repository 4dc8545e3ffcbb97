// Package service says what each Service comes to: which address and port goes to which endpoints. It is pure: Services, their EndpointSlices and what is known
// of VMs go in, and what changed comes out. The controller makes load balancers of it for what pods send, each agent rules for what its host sends and receives.
//
// The rules are kube-proxy's, so that a Service means here what it means elsewhere (pkg/proxy/serviceport.go and topology.go in kubernetes/kubernetes), with one
// difference: a VM has two launcher pods while it moves, whose readiness flaps, and one address, which does not. Its endpoint is held (VM.Hold).
package service
