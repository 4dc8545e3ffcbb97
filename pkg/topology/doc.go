// Package topology says what the northbound rows of each API object look like. It is pure: values in, desired rows out.
//
// A network is one logical router. Each Subnet is a logical switch that spans all nodes, its gateway port the same everywhere. The join switch connects the
// router to every node's ovn0. What a pod sends to an address outside of the network leaves through the ovn0 of the node where the pod runs: one router policy a
// node, which applies only on the chassis where that node's port resides (is_chassis_resident), so nothing has to be written when a pod comes, goes or moves.
package topology
