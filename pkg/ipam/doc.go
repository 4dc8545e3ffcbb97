// Package ipam allocates addresses over values that are passed in. It does no I/O and knows no Kubernetes object: an owner is any string.
//
// A Pool covers one Subnet. It is not safe for concurrent use; the caller locks.
package ipam
