package raft

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const leaderStatus = `5a1f
Name: OVN_Northbound
Cluster ID: 7b2c (7b2c3d4e-1111-4222-8333-444455556666)
Server ID: 5a1f (5a1f0000-aaaa-4bbb-8ccc-ddddeeeeffff)
Address: tcp:10.0.0.1:6643
Status: cluster member
Role: leader
Term: 3
Leader: self
Vote: self

Last Election started 5134 ms ago, reason: timeout
Last Election won: 5134 ms ago
Election timer: 2000
Log: [2, 17]
Entries not yet committed: 1
Entries not yet applied: 2
Connections: ->0000 <-9a9a ->9a9a
Disconnections: 1
Servers:
    5a1f (5a1f at tcp:10.0.0.1:6643) (self) next_index=16 match_index=16
    9a9a (9a9a at tcp:[fd00::3]:6643) next_index=17 match_index=12
    7b7b (7b7b at tcp:10.0.0.3:6643) next_index=17 match_index=16 last msg 61000 ms ago
`

func TestParse(t *testing.T) {
	want := Status{
		Cluster: "7b2c3d4e-1111-4222-8333-444455556666", Server: "5a1f0000-aaaa-4bbb-8ccc-ddddeeeeffff", Role: "leader", Leader: "self", Member: true, Term: 3,
		First: 2, End: 17, Uncommitted: 1, Unapplied: 2, Servers: []Server{
			{ID: "5a1f", Address: "tcp:10.0.0.1:6643", Self: true, Silent: -1, Match: 16}, {ID: "9a9a", Address: "tcp:[fd00::3]:6643", Silent: -1, Match: 12},
			{ID: "7b7b", Address: "tcp:10.0.0.3:6643", Silent: 61 * time.Second, Match: 16},
		},
	}
	if diff := cmp.Diff(want, Parse(leaderStatus)); diff != "" {
		t.Error(diff)
	}
	if failed := Parse("Name: OVN_Northbound\nStatus: failed\nRole: leader\nLeader: self\n"); failed.Member || failed.Leads() || !failed.Failed || failed.Role != "leader" {
		t.Errorf("a server that has failed: %+v", failed)
	}
	if joining := Parse("Name: OVN_Northbound\nStatus: joining cluster\nRole: follower\nLeader: unknown\n"); joining.Member || joining.Leads() || joining.Leader != "unknown" {
		t.Errorf("a member that is joining: %+v", joining)
	}
}

// By TLS, the southbound database's members have unix sockets.
func TestParseSockets(t *testing.T) {
	got := Parse("Leader: sb-172-30-0-13\nServers:\n    sb-172-30-0-11 (aeee at unix:/run/ovn/sb-172-30-0-11.sock) next_index=21 match_index=20 last msg 521 ms ago\n")
	want := Status{Leader: "sb-172-30-0-13", Servers: []Server{{ID: "aeee", Address: "unix:/run/ovn/sb-172-30-0-11.sock", Silent: 521 * time.Millisecond, Match: 20}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
