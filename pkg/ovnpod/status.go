package ovnpod

import (
	"context"
	"fmt"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/raft"
)

// Status is what a database server says of its cluster.
type Status struct {
	// Cluster and Server are identities.
	Cluster, Server string
	// Member: it belongs to the cluster. Leader: it leads it. Led: it knows a leader.
	Member, Leader, Led bool
	// Failed: it could not write to its disk, and does nothing any more. Pretends: it tells its clients that it leads all the same.
	Failed, Pretends bool
	Term             int
	// First and End bound the entries of the log that are not in the snapshot yet: from First to before End.
	First, End int
	// Uncommitted and Unapplied are how many of them most members do not have yet, or this one has not applied.
	Uncommitted, Unapplied int
	servers                []raft.Server
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
	return Status{
		Cluster: r.Cluster, Server: r.Server, Member: r.Member, Leader: r.Leads(), Led: r.Leader != "" && r.Leader != "unknown", Term: r.Term,
		Failed: r.Failed, Pretends: r.Failed && r.Role == "leader", First: r.First, End: r.End, Uncommitted: r.Uncommitted, Unapplied: r.Unapplied,
		servers: r.Servers,
	}
}
