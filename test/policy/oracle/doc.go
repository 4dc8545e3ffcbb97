// Package oracle says what NetworkPolicies permit, straight from the words of the API (k8s.io/api/networking/v1, types.go, and the concept page of
// kubernetes.io): slow, literal, without any of the product's code, to compare the product with. Tests use it in memory and on a running cluster.
//
// Where the specification leaves something open, it says what pkg/policy documents: pods on their node's network are the node to others and are not selected; what a
// node sends to a pod on it is permitted; an address that is a node's, whoever sends under it, is matched by ipBlocks alone.
package oracle
