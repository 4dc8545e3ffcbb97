// Package raft reads what a database server of OVN's says of its cluster, the text of cluster/status (ovsdb/raft.c, raft_unixctl_status). It is pure.
package raft

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Server is a member as the one who was asked sees it.
type Server struct {
	// ID is the first digits of its identity; Address is raft's, as tcp:192.0.2.1:6643 or unix:/PATH.
	ID, Address string
	// Self: it is the one who was asked.
	Self bool
	// Silent is how long ago it said something; negative: never, or it is not for the one who was asked to know.
	Silent time.Duration
	// Match is the last entry of the log that it is known to have: the leader knows it of each, others of none (0).
	Match int
}

// Status is what a database server says of its cluster.
type Status struct {
	// Cluster and Server are identities.
	Cluster, Server string
	// Role is leader, candidate or follower; Leader the leader's first digits (or the name of its socket), "self" or "unknown".
	Role, Leader string
	// Member: it belongs to the cluster. Failed: it could not write to its disk, and does nothing any more, whatever its role was.
	Member, Failed bool
	Term           int
	// First and End bound the entries of the log that are not in the snapshot yet: from First to before End.
	First, End int
	// Uncommitted and Unapplied are how many of them most members do not have yet, or this one has not applied.
	Uncommitted, Unapplied int
	Servers                []Server
}

// Leads says whether the server itself is the leader.
func (s Status) Leads() bool { return s.Role == "leader" && !s.Failed }

// Self is the member that was asked; zero if it is none.
func (s Status) Self() Server {
	for _, one := range s.Servers {
		if one.Self {
			return one
		}
	}
	return Server{}
}

var (
	identity   = regexp.MustCompile(`\(([0-9a-f]{8}-[0-9a-f-]{27})\)`)
	serverRow  = regexp.MustCompile(`^\s+\S+ \(([0-9a-f]+) at ([^)]*)\)(.*)$`) // what is before the parenthesis is made of the address, if that is a unix socket
	matchIndex = regexp.MustCompile(`match_index=(\d+)`)
	lastHeard  = regexp.MustCompile(`last msg (\d+) ms ago`)
)

// Parse reads the text; what is not in it stays zero.
func Parse(text string) Status {
	var s Status
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Cluster ID":
			s.Cluster = firstMatch(identity, value)
		case "Server ID":
			s.Server = firstMatch(identity, value)
		case "Status":
			s.Member, s.Failed = value == "cluster member", value == "failed"
		case "Role":
			s.Role = value
		case "Leader":
			s.Leader = value
		case "Term":
			s.Term, _ = strconv.Atoi(value)
		case "Log":
			_, _ = fmt.Sscanf(value, "[%d, %d]", &s.First, &s.End) // as the others: 0 for what is none
		case "Entries not yet committed":
			s.Uncommitted, _ = strconv.Atoi(value)
		case "Entries not yet applied":
			s.Unapplied, _ = strconv.Atoi(value)
		}
		if m := serverRow.FindStringSubmatch(line); m != nil {
			one := Server{ID: m[1], Address: m[2], Self: strings.Contains(m[3], "(self)"), Silent: -1}
			if ms, err := strconv.Atoi(firstMatch(lastHeard, m[3])); err == nil {
				one.Silent = time.Duration(ms) * time.Millisecond
			}
			one.Match, _ = strconv.Atoi(firstMatch(matchIndex, m[3]))
			s.Servers = append(s.Servers, one)
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
