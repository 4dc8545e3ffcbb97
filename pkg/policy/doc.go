// Package policy compiles NetworkPolicies (networking.k8s.io/v1) into northbound rows: port groups, address sets and ACLs. It is pure: objects in, rows out.
//
// # What is written
//
//	port group  godwit_np_ingress, godwit_np_egress   the pods that some policy isolates in that direction. Their ACLs drop what nothing else permits.
//	port group  godwit_np_ingress_handover, …egress…   those of them that take connections along (Index.StartMoving)
//	port group  godwit_s_…                            what a podSelector selects in a namespace. Policies with the same one share it; their ACLs permit.
//	port group  godwit_n_…_NUMBER                     those of them whose port of some name has that number, for ingress rules with named ports
//	address set godwit_p_…_4, _6                      the pods that a peer's selectors select. Equal peers share it, whatever policy or direction they are of.
//	address set godwit_d_…_NUMBER_4, _6               those of them whose port of some name has that number, for egress rules with named ports
//	address set godwit_b_…_4, _6                      the ipBlocks of one from or to list; equal ones share it
//
// A pod that comes, goes, or changes its labels or addresses changes members of groups and sets and nothing else. There is one exception: the first pod that has
// a named port at a number that no other selected pod has it at adds an ACL for that number, and the last one takes it away. A match
// cannot pair a port's number with the pod that it belongs to; a group or set for each number can, and all but the first and last pod of a number are then
// members like others.
//
// Index follows events and says what changed (Take); a pod's event costs what the pod's labels select, whatever else there is. Compile does the same from nothing.
//
// # Matches
//
// All matches are conjunctions of these terms (ovn-sb(5), Logical_Flow, match), which is also all that the tests' evaluator knows:
//
//	outport == @GROUP      inport == @GROUP       the isolated pod, to-lport and from-lport
//	ip4.src == $SET        ip4.dst == $SET        the peer, likewise ip6; a single address in the ACLs that are always there, and a source port in one
//	tcp.dst == {80, 443}   8000 <= tcp.dst <= 8080   tcp   likewise udp, sctp; more than one of them in parentheses, with ||
//	ip                                            any
//	ct.est && ct.rpl                              a reply, in one ACL that is always there
//	ct.new   ct.est   ct_label.label == 24785   tcp.flags[1] == 0
//	                                              connections that move with a VM, in ACLs that are always there (handover.go)
//	is_chassis_resident("PORT")                   only on that chassis
//
// One ACL has one address set: of one peer (of all, where a rule has more than eight), or of all ipBlocks, in one family. ovn-controller follows a change of an
// address set incrementally only where no other set is beside it in the match (ovn controller/lflow.c, lflow_handle_addr_set_update). And an ipBlock is
// written as the prefixes that are left when its exceptions are cut out: with "!=" of masked addresses, the flows of each exception multiply with those of the next.
//
// Egress ACLs carry apply-after-lb=true: a policy permits backends, and what a pod sends to a Service has the Service's address before the load balancer.
//
// # What the specification leaves open
//
//   - Pods on their node's own network have no port: policies do not apply to them, and selectors do not find them. What they send and get is the node's, and
//     an ipBlock that holds the node's address permits it.
//   - What comes from a node's address on the join network, or goes to it, counts as the node's own address in ipBlocks: what the node itself sends, and clients that
//     it source-NATs. The join network is cut out of every ipBlock, so that 0.0.0.0/0 with the nodes' network as exception does not let nodes in by another name.
//     A node that has no address of a family counts under its join address.
//   - What a node itself sends to the pods on it is exempt from ingress policies (kubelet's probes); to pods on other nodes it is not, nor are clients that it
//     source-NATs. A node's own pods are not exempt in what they send to it.
//   - A named port in an egress rule is the destination pod's. Of an ipBlock, and where a rule names no peer, the pods are meant whose address it holds, or all.
//   - A policy permits connections; replies, and errors that belong to them, pass (allow-related). ARP, neighbour discovery and multicast listener reports pass
//     OVN's ACLs whatever they say (northd/northd.c, build_acls); a guest's DHCP requests are permitted here, as OVN answers them after its ACLs.
//   - What is wrong in a rule makes that rule permit nothing, and is a Problem; the isolation and the other rules stand. If the podSelector or a policyType is what is
//     wrong, which the API server does not accept, the policy isolates all pods of its namespace, or isolates them in both directions.
//   - What one policy may come to is bounded (extent.go). A rule that goes beyond is wrong.
package policy
