package ovnpod

import (
	"context"
	"fmt"
	"time"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/raft"
)

// server is a member as the leader sees it.
type server struct {
	// ID is the first digits of its identity; Address is raft's.
	ID, Address string
	Self        bool
	// Silent is how long ago it said something; negative: never to this leader.
	Silent time.Duration
	// Match is the last entry of the log that it is known to have; the leader knows it of each.
	Match int
}

// Status is what a database server says of its cluster.
type Status struct {
	// Cluster and Server are identities.
	Cluster, Server string
	// Member: it belongs to the cluster. Leader: it leads it. Led: it knows a leader.
	Member, Leader, Led bool
	Term                int
	// First and End bound the entries of the log that are not in the snapshot yet: from First to before End.
	First, End int
	// Uncommitted and Unapplied are how many of them most members do not have yet, or this one has not applied.
	Uncommitted, Unapplied int
	servers                []server
}

// status asks a database server, by its control socket.
func (d Database) status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var said string
	if err := ovs.Call(ctx, d.Control, "cluster/status", []string{d.Name}, &said); err != nil {
		return Status{}, fmt.Errorf("ask %s for the cluster of %s: %w", d.Control, d.Name, err)
	}
	return parseStatus(said), nil
}

func parseStatus(said string) Status {
	r := raft.Parse(said)
	s := Status{
		Cluster: r.Cluster, Server: r.Server, Member: r.Member, Leader: r.Leads(), Led: r.Leader != "" && r.Leader != "unknown", Term: r.Term,
		First: r.First, End: r.End, Uncommitted: r.Uncommitted, Unapplied: r.Unapplied,
	}
	for _, one := range r.Servers {
		s.servers = append(s.servers, server(one))
	}
	return s
}
