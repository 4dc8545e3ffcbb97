// Package frame is single Ethernet frames on a link: the announcement of a VM that has moved, sent, and the frames that a VM sends, seen with the time
// at which the kernel got them. It knows nothing of pods, Kubernetes or OVN.
//
// A socket belongs to the network namespace of the thread that opens it; callers see to that.
package frame
