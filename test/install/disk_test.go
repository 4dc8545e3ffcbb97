package install

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
)

const (
	databaseDir = "/var/lib/godwit/ovn"
	// diskSize is room for both databases of a lab, and for a copy of each while it is compacted.
	diskSize = "32m"
)

// smallDisks gives the databases of each node a disk that can be filled.
func smallDisks(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, node := range l.NodeNames() {
		if _, err := l.Exec(t.Context(), node, "sh", "-c", "mkdir -p "+databaseDir+" && mount -t tmpfs -o mode=755,size="+diskSize+" tmpfs "+databaseDir); err != nil {
			t.Fatal(err)
		}
	}
}

// diskFull fills the disk of the member that leads NB: pods start all the same, those that run notice nothing, and when there is room again the member has what it missed.
func diskFull(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	leader := leaderOf(t, l, "nb")
	node := podNode(t, client, leader)
	writes := startWriting(t, l, node)
	var full time.Time
	probes := watched(t, l, client, func() {
		full = time.Now()
		room := fillDisk(t, l, node)
		ns := newNamespace(t, client)
		for _, n := range l.NodeNames() {
			if n != node {
				echoPod(t, client, ns, n)
			}
		}
		took := time.Since(full)
		room()
		again := time.Now()
		everyMemberSeesAll(t, l)
		eventually(t, func() error { return caughtUp(t, l) })
		t.Logf("the disk of %s, which led NB on %s, was full: pods on the other nodes ran after %s; with room again all members had everything after %s",
			leader, node, took.Round(100*time.Millisecond), time.Since(again).Round(100*time.Millisecond))
	})
	t.Logf("the longest time without a write to NB was %s", writes.stop(t, full).Round(10*time.Millisecond))
	for i := range probes {
		goesOn(t, &probes[i], "while a disk was full")
	}
}

// fillDisk leaves no room on a node's disk of the databases, and returns what makes room again.
func fillDisk(t *testing.T, l *lab.Lab, node string) (room func()) {
	t.Helper()
	const filler = databaseDir + "/filler"
	said, err := l.Exec(t.Context(), node, "sh", "-c", "dd if=/dev/zero of="+filler+" bs=4k 2>&1; true")
	if err != nil || !strings.Contains(said, "No space left") {
		t.Fatalf("the disk of %s is not full: %q, %v", node, said, err)
	}
	return func() {
		if _, err := l.Exec(t.Context(), node, "rm", filler); err != nil {
			t.Error(err)
		}
	}
}

// behind is a line of `kubectl ovn db status` of a member that lacks entries.
var behind = regexp.MustCompile(`(?m)^ovn-central-\d+ .* [1-9]\d* +\d+ +\S+ ago *$`)

// caughtUp returns an error as long as a member lacks something that the leader has.
func caughtUp(t *testing.T, l *lab.Lab) error {
	said, err := pluginSays(t.Context(), l, "", "db", "status")
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, said)
	}
	if line := behind.FindString(said); line != "" {
		return fmt.Errorf("a member lacks entries: %s", line)
	}
	return nil
}
