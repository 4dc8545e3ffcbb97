package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/raft"
)

func (s *session) dbCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "db", Short: "OVN's databases: their members, a copy"}
	var columns string
	status := &cobra.Command{
		Use: "status", Args: cobra.NoArgs,
		Short: "Who is a member of OVN's databases, who leads, who is behind",
		Long: `status asks every member of the northbound and the southbound database for what it says of its cluster. BEHIND is how many entries of the log a member lacks, by the leader's word, and HEARD
how long ago the leader had an answer of it. FILE is the size of the member's file, which the server compacts from time to time. -o wide has the members' addresses and logs besides.
It exits with 1 if a database has no leader, or a member does not answer, has failed or has not joined.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if columns != "" && columns != string(wide) {
				return fmt.Errorf("-o %s: wide is all that there is", columns)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			return c.dbStatus(cmd.Context(), cmd.OutOrStdout(), format(columns))
		},
	}
	status.Flags().StringVarP(&columns, "output", "o", "", "wide")
	backup := &cobra.Command{
		Use: "backup FILE", Args: cobra.ExactArgs(1),
		Short: "A consistent copy of the northbound database",
		Long: `backup writes a copy of the northbound database as it is at one moment, read at its leader; to standard output if FILE is "-". It is a file of ovsdb-server's, for ovsdb-tool and
ovsdb-client restore. FILE is only there once it is complete.
Godwit needs no copy: godwit-controller writes everything of its own again from the API. The copy is for looking at, and for rows that somebody else has added.`,
		Example: "  kubectl ovn db backup nb.db",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			return c.backup(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	cmd.AddCommand(status, backup)
	return cmd
}

// dbMember is what a pod's member of a database says, or why it says nothing.
type dbMember struct {
	pod, node string
	status    raft.Status
	err       error
	// size is its file's, in bytes; 0 if it is not known.
	size int64
}

// problem is what is wrong with it, nil if nothing is.
func (m dbMember) problem() error {
	switch {
	case m.err != nil:
		return fmt.Errorf("does not answer: %w", m.err)
	case m.status.Failed:
		return fmt.Errorf("could not write to its disk, and has given up: make room in /var/lib/godwit/ovn of %s, and it starts again by itself (docs/ovn-pods.md)", m.node)
	case !m.status.Member:
		return errors.New("has not joined its cluster, or is cut off from it: its pod's logs; are raft's ports (6643, 6644) open between the nodes?")
	}
	return nil
}

// role is what it does, as far as it says: of one that gave up, what it was says nothing; one that joins is a follower of nobody yet.
func (m dbMember) role() string {
	switch {
	case m.status.Failed:
		return "failed"
	case !m.status.Member && m.status.Role != "candidate": // that is one which is cut off
		return "joining"
	}
	return m.status.Role
}

// dbStatus prints both databases.
func (c cluster) dbStatus(ctx context.Context, w io.Writer, columns format) error {
	pods, err := c.ovnPods(ctx, centralComponent, "")
	if err != nil {
		return err
	}
	var problems []error
	for _, d := range []database{northbound, southbound} {
		members := make([]dbMember, len(pods))
		for i := range pods {
			members[i] = c.dbMember(ctx, d, &pods[i])
		}
		problems = append(problems, membership{d, members}.write(w, columns))
	}
	return errors.Join(problems...)
}

func (c cluster) dbMember(ctx context.Context, d database, pod *corev1.Pod) dbMember {
	s, err := c.clusterStatus(ctx, d, pod)
	m := dbMember{pod: pod.Name, node: pod.Spec.NodeName, status: s, err: err}
	if err == nil {
		m.size = c.fileSize(ctx, d, pod)
	}
	return m
}

// fileSize is how large a member's file is, 0 where its pod, of an earlier version, does not tell.
func (c cluster) fileSize(ctx context.Context, d database, pod *corev1.Pod) int64 {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said, err := output(ctx, c.containers, d.of(pod), "godwit-ovn", "size", d.container)
	if err != nil {
		return 0
	}
	size, err := strconv.ParseInt(strings.TrimSpace(said), 10, 64)
	if err != nil {
		return 0
	}
	return size
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	switch {
	case n <= 0:
		return noColumn
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// membership are the members of a database.
type membership struct {
	database
	members []dbMember
}

// write prints them, those that run in no pod among them, and is an error if something is wrong with one, or none leads.
func (ms membership) write(w io.Writer, columns format) error {
	var problems []error
	for _, m := range ms.members {
		if err := m.problem(); err != nil {
			problems = append(problems, fmt.Errorf("%s: member in %s %w", ms.name, m.pod, err))
		}
	}
	leader := ms.leader()
	head := ms.name + ": no leader"
	if leader != nil {
		head = fmt.Sprintf("%s: %s leads in term %d", ms.name, leader.pod, leader.status.Term)
		if columns == wide {
			head += ", cluster " + leader.status.Cluster
		}
	} else {
		problems = append(problems, fmt.Errorf("%s has no leader: nothing can be written until more than half of its members are there", ms.name))
	}
	say(w, "%s", head)
	rows := [][]string{{"MEMBER", "NODE", "ROLE", "TERM", "BEHIND", "HEARD", "FILE"}}
	if columns == wide {
		rows[0] = append(rows[0], "ADDRESS", "LOG", "UNCOMMITTED")
	}
	for _, row := range ms.rows(leader) {
		rows = append(rows, row[:len(rows[0])])
	}
	(&table{out: w}).rows(rows...)
	say(w, "")
	return errors.Join(problems...)
}

// leader is the member that leads, of several that say so the last that was chosen; nil if none does.
func (ms membership) leader() *dbMember {
	var leader *dbMember
	for i := range ms.members {
		if m := &ms.members[i]; m.err == nil && m.status.Leads() && (leader == nil || m.status.Term > leader.status.Term) {
			leader = m
		}
	}
	return leader
}

// rows are the members with all columns.
func (ms membership) rows(leader *dbMember) [][]string {
	var rows [][]string
	known := map[string]bool{}
	for _, m := range ms.members {
		if m.err != nil {
			rows = append(rows, []string{m.pod, m.node, "silent", noColumn, noColumn, noColumn, noColumn, noColumn, noColumn, noColumn})
			continue
		}
		self := m.status.Self()
		known[self.Address] = true
		behind, heard := lag(leader, self.Address)
		rows = append(rows, []string{
			m.pod, m.node, m.role(), fmt.Sprint(m.status.Term), behind, heard, bytesText(m.size), self.Address, fmt.Sprintf("%d-%d", m.status.First, m.status.End-1), fmt.Sprint(m.status.Uncommitted),
		})
	}
	if leader == nil {
		return rows
	}
	for _, s := range leader.status.Servers {
		if !known[s.Address] {
			behind, heard := lag(leader, s.Address)
			rows = append(rows, []string{s.ID, hostOf(s.Address), "not seen", noColumn, behind, heard, noColumn, s.Address, noColumn, noColumn}) // of its node nothing else is known
		}
	}
	return rows
}

// hostOf is the host of a member's address, PROTOCOL:HOST:PORT.
func hostOf(address string) string {
	_, rest, _ := strings.Cut(address, ":")
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return address
	}
	return host
}

// lag is how far a member is behind, and for how long it was silent, by the leader's word.
func lag(leader *dbMember, address string) (behind, heard string) {
	behind, heard = noColumn, noColumn
	if leader == nil {
		return behind, heard
	}
	for _, s := range leader.status.Servers {
		if s.Address != address || s.Self {
			continue
		}
		behind = fmt.Sprint(max(0, leader.status.End-1-s.Match))
		if s.Silent >= 0 {
			heard = s.Silent.Round(time.Millisecond).String() + " ago"
		}
	}
	return behind, heard
}

// backup writes a copy of NB.
func (c cluster) backup(ctx context.Context, stdout io.Writer, name string) (err error) {
	in, err := c.leader(ctx, northbound)
	if err != nil {
		return err
	}
	out := stdout
	if name != "-" {
		var f *os.File
		if f, err = os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*.partial"); err != nil {
			return fmt.Errorf("write the copy: %w", err)
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err == nil {
				err = os.Rename(f.Name(), name)
			}
			if err != nil {
				err = errors.Join(err, os.Remove(f.Name()))
			}
		}()
		out = f
	}
	var stderr strings.Builder
	err = c.containers.run(ctx, program{in: in, args: []string{"ovsdb-client", "backup", "unix:/run/ovn/ovnnb_db.sock", northbound.name}, stdout: out, stderr: &stderr})
	var exit *ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("copy %s: %w: %s", northbound.name, err, strings.TrimSpace(stderr.String()))
	}
	return err
}
