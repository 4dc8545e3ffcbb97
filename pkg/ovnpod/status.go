package ovnpod

import (
	"bufio"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/pkg/ovs"
)

// server is a member as the leader sees it.
type server struct {
	// ID is the first digits of its identity; Address is raft's.
	ID, Address string
	Self        bool
	// Silent is how long ago it said something; negative: never to this leader.
	Silent time.Duration
}

// Status is what a database server says of its cluster.
type Status struct {
	// Cluster and Server are identities.
	Cluster, Server string
	// Member: it belongs to the cluster. Leader: it leads it. Led: it knows a leader.
	Member, Leader, Led bool
	Term                int
	servers             []server
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

var (
	identity  = regexp.MustCompile(`\(([0-9a-f]{8}-[0-9a-f-]{27})\)`)
	serverRow = regexp.MustCompile(`^\s+\S+ \(([0-9a-f]+) at ([^)]*)\)(.*)$`) // what is before the parenthesis is made of the address, if that is a unix socket
	lastHeard = regexp.MustCompile(`last msg (\d+) ms ago`)
)

// parseStatus reads the text of cluster/status (ovsdb/raft.c, raft_unixctl_status).
func parseStatus(said string) Status {
	var s Status
	for sc := bufio.NewScanner(strings.NewReader(said)); sc.Scan(); {
		line := sc.Text()
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Cluster ID":
			s.Cluster = firstMatch(identity, value)
		case "Server ID":
			s.Server = firstMatch(identity, value)
		case "Status":
			s.Member = value == "cluster member"
		case "Role":
			s.Leader = value == "leader"
		case "Leader":
			s.Led = value != "unknown"
		case "Term":
			s.Term, _ = strconv.Atoi(value)
		}
		if m := serverRow.FindStringSubmatch(line); m != nil {
			one := server{ID: m[1], Address: m[2], Self: strings.Contains(m[3], "(self)"), Silent: -1}
			if ms, err := strconv.Atoi(firstMatch(lastHeard, m[3])); err == nil {
				one.Silent = time.Duration(ms) * time.Millisecond
			}
			s.servers = append(s.servers, one)
		}
	}
	return s
}

func firstMatch(re *regexp.Regexp, text string) string {
	if m := re.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}
