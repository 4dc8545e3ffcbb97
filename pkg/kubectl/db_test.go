package kubectl

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/godwit-cni/godwit/pkg/raft"
)

func TestDatabaseStatus(t *testing.T) {
	leader := raft.Status{Cluster: "7b2c3d4e-1111-4222-8333-444455556666", Role: "leader", Member: true, Term: 3, First: 2, End: 17, Uncommitted: 1, Servers: []raft.Server{
		{Address: "tcp:10.0.0.1:6643", Self: true, Silent: -1, Match: 16}, {Address: "tcp:10.0.0.2:6643", Silent: 40 * time.Millisecond, Match: 12},
		{ID: "9a9a", Address: "tcp:10.0.0.9:6643", Silent: 61 * time.Second, Match: 3},
	}}
	follower := raft.Status{Role: "follower", Member: true, Term: 3, First: 2, End: 13, Servers: []raft.Server{{Address: "tcp:10.0.0.2:6643", Self: true, Silent: -1}}}
	all := []dbMember{
		{pod: "ovn-central-0", node: "node1", status: leader, size: 1_234_567}, {pod: "ovn-central-1", node: "node2", status: follower, size: 20_480}, {pod: "ovn-central-2", node: "node3", err: errors.New("no such socket")},
	}
	var out bytes.Buffer
	err := membership{northbound, all}.write(&out, asTable)
	if err == nil || !strings.Contains(err.Error(), "member in ovn-central-2 does not answer: no such socket") || strings.Contains(err.Error(), "leader") {
		t.Errorf("error %v", err)
	}
	golden(t, "db-status.txt", out.String())
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	out.Reset()
	if err := (membership{northbound, all}).write(&out, wide); err == nil {
		t.Error("nothing is wrong with -o wide")
	}
	golden(t, "db-status-wide.txt", out.String())
	out.Reset()
	if err := (membership{northbound, all[1:2]}).write(&out, asTable); err == nil || !strings.Contains(err.Error(), "OVN_Northbound has no leader: nothing can be written") {
		t.Errorf("without a leader: %v", err)
	}
}

// A member that has given up, one that has not joined and one that is cut off are told as such, and are an error.
func TestDatabaseStatusOfNoMember(t *testing.T) {
	leader := raft.Parse("Status: cluster member\nRole: leader\nLeader: self\nTerm: 3\n")
	for said, want := range map[string][2]string{
		"Status: failed\nRole: leader\nLeader: self\n":                                {"failed", "OVN_Northbound: member in ovn-central-1 could not write to its disk, and has given up: make room in /var/lib/godwit/ovn of node2"},
		"Status: joining cluster\nRole: follower\n":                                   {"joining", "OVN_Northbound: member in ovn-central-1 has not joined its cluster"},
		"Status: disconnected from the cluster (election timeout)\nRole: candidate\n": {"candidate", "or is cut off from it"},
	} {
		var out bytes.Buffer
		err := membership{northbound, []dbMember{{pod: "ovn-central-0", node: "node1", status: leader}, {pod: "ovn-central-1", node: "node2", status: raft.Parse(said)}}}.write(&out, asTable)
		if err == nil || !strings.Contains(err.Error(), want[1]) || strings.Contains(err.Error(), "no leader") {
			t.Errorf("%q: %v, want %s", said, err, want[1])
		}
		if !strings.Contains(out.String(), "ovn-central-1   node2   "+want[0]) {
			t.Errorf("%q: want the role %s\n%s", said, want[0], out.String())
		}
	}
}

func TestBackup(t *testing.T) {
	said := answers{"ovn-central-0" + askNB: status("leader"), "ovn-central-0/nb: ovsdb-client backup unix:/run/ovn/ovnnb_db.sock OVN_Northbound": {stdout: "OVSDB JSON …"}}
	c := clusterOf(t, said, ovnPod("ovn-central-0", centralComponent, "node1"))
	dir := t.TempDir()
	if err := c.backup(t.Context(), nil, filepath.Join(dir, "nb.db")); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "nb.db")); err != nil || string(text) != "OVSDB JSON …" {
		t.Errorf("%q, %v", text, err)
	}
	said["ovn-central-0/nb: ovsdb-client backup unix:/run/ovn/ovnnb_db.sock OVN_Northbound"] = answer{stdout: "OVSDB", stderr: "lost the connection", code: 1}
	if err := c.backup(t.Context(), nil, filepath.Join(dir, "half.db")); err == nil || !strings.Contains(err.Error(), "lost the connection") {
		t.Errorf("a copy that fails: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestFileSize(t *testing.T) {
	pod := ovnPod("ovn-central-0", centralComponent, "node1")
	said := answers{"ovn-central-0/nb: godwit-ovn size nb": {stdout: "20480\n"}, "ovn-central-0/sb: godwit-ovn size sb": {stderr: "unknown command", code: 1}}
	c := clusterOf(t, said, pod)
	if nb, sb := c.fileSize(t.Context(), northbound, pod), c.fileSize(t.Context(), southbound, pod); nb != 20480 || sb != 0 {
		t.Errorf("%d and %d bytes, want 20480 and 0", nb, sb)
	}
	for n, want := range map[int64]string{0: "-", 999: "1.0 kB", 20_480: "20.5 kB", 1_234_567: "1.2 MB", 5e9: "5.0 GB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d bytes are %s, want %s", n, got, want)
		}
	}
}
