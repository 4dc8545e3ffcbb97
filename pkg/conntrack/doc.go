// Package conntrack moves the state of one connection tracking zone of the kernel to another zone, of the same or of another network namespace or node, by ctnetlink:
// a VM's connections go on where it has moved to. It knows nothing of VMs, ports or OVN; who calls it says which zone, and when.
//
//	source:  Table.Dump of the zones → Passes.Due, what the target has not been told → Encode
//	target:  Decode → Table.Upsert into the target's own zone
//
// What is not moved, and why:
//   - how far TCP's windows have come, which ctnetlink cannot say: entries are liberal (IP_CT_TCP_FLAG_BE_LIBERAL), as Open vSwitch makes its own, and the flag that says that the
//     highest acknowledgement is known is cleared. With it the kernel would take an RST for invalid whose sequence number is before 0;
//   - that an entry belongs to another (RELATED): it stands for itself on the target, where it is an established connection as it was;
//   - connections whose sequence numbers a helper has shifted: they are refused, since the shift cannot be continued without the helper;
//   - counters, timestamps, helpers, offload.
//
// What the target may have instead of an entry: while two chassis are asked for, OVN clones the source's packets to the target, where they pass the port's zone before they are dropped.
// Connection tracking there picks up in the middle what it sees, and takes a reply for the beginning. Table.Upsert deletes such entries by both tuples and their ID, and never one with NAT:
// that is a connection of its own, in a zone that ports share.
//
// Traps of the kernel's (net/netfilter/nf_conntrack_netlink.c, nf_nat_core.c; Linux 6.1, 6.18):
//   - a request finds an entry by a tuple of either direction: what is found is compared before it is changed or deleted;
//   - a DELETE without a tuple deletes everything, and before 6.8 also that of other zones: there is no way to write one here;
//   - with CTA_NAT_DST alone the source's port is the kernel's choice: both sides are said, each with one address and one port, and CTA_TUPLE_REPLY is what a reply would be without NAT;
//   - SEEN_REPLY and ASSURED can be set and not cleared; NAT can be said for a new entry only;
//   - labels are dropped without an error where nothing in the namespace uses labels yet (since 6.12 that is until the first flow of Open vSwitch's that has some): Result.Unlabelled;
//   - a full table makes room by dropping other connections that are not assured: Table.Upsert stops before it is full.
package conntrack
