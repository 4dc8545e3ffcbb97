package policy

import (
	"strconv"
	"time"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// A VM's connections move with it, what the old node's connection tracking knew of them does not. On the new node their next packet is the first that is seen of them,
// whichever end sent it: a download that an isolated VM began would look like a connection to it, which nobody permits, and stall for ever.
//
// While a port moves, and for a while after, what can only be a packet from the middle of a connection is therefore admitted to and from it: TCP without SYN. Nothing
// else tells old from new: UDP does not say, and SCTP's connection tracking takes no packet from the middle. A connection that was admitted so has a label. When
// the port leaves the group the connection would be judged again, by the policies, as one that the other end opened, and die; two ACLs that are always
// there carry on what has the label, but no SYN: whoever got a label by a forged segment still cannot open a connection by it.

// HandoverLabel is the label (ACL.label, ct_label.label) of connections that were admitted because their VM moved.
const HandoverLabel = 24785

// HandoverGrace is how long after a move what can only be of an old connection is admitted, unless the controller is told otherwise.
const HandoverGrace = time.Minute

// handoverGroup is the port group of those members of an isolation group that take connections along. Ports that nothing isolates are not in one: no policy
// judges their packets, and an ACL would begin to track the connections of a whole switch.
func handoverGroup(isolation string) string { return isolation + "_handover" }

// handoverACLs are always the same: who may use them is a matter of group members.
func handoverACLs() []ACL {
	var out []ACL
	for i := range [2]struct{}{} {
		d := direction(i)
		out = append(out,
			// Only what connection tracking does not know: a connection that a policy has cut off stays so, and one that is known is judged as ever.
			constant(d, handoverGroup(isolationGroup(d)), "handover", nbdb.ACL{
				Priority: PriorityHandover, Action: nbdb.ACLActionAllowRelated, Label: HandoverLabel, Match: "ct.new && tcp.flags[1] == 0",
			}),
			constant(d, isolationGroup(d), "handed-over", nbdb.ACL{
				Priority: PriorityHandedOver, Action: nbdb.ACLActionAllowRelated,
				Match: "ct.est && ct_label.label == " + strconv.Itoa(HandoverLabel) + " && tcp.flags[1] == 0",
			}),
		)
	}
	return out
}

// StartMoving lets a port take its connections along, until StopMoving. The port need not be known. It changes members of groups, and no ACL.
func (x *Index) StartMoving(port ident.PortName) {
	if x.Moving(port) {
		return
	}
	x.moving[port] = struct{}{}
	x.eachIsolation(port, x.groups.add)
}

// StopMoving ends what StartMoving began. What was admitted meanwhile goes on.
func (x *Index) StopMoving(port ident.PortName) {
	if !x.Moving(port) {
		return
	}
	delete(x.moving, port)
	x.eachIsolation(port, x.groups.remove)
}

// Moving says whether a port takes its connections along.
func (x *Index) Moving(port ident.PortName) bool {
	_, moving := x.moving[port]
	return moving
}

// eachIsolation counts a port in the handover groups, once for each reason that it is isolated for.
func (x *Index) eachIsolation(port ident.PortName, count func(string, ident.PortName)) {
	p := x.pods[port]
	if p == nil {
		return
	}
	for c := range p.classes {
		for v := range c.views {
			if v.isolates {
				count(handoverGroup(v.name), port)
			}
		}
	}
}
