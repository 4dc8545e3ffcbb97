package install

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
)

const (
	// lockKept bounds for how long nothing that is written to NB comes to SB when the node of the ovn-northd that works has crashed, on a slow machine: the gate's silence, and an election of NB's leader, if it was there.
	// It was 150 s as long as the gate left it to TCP to find out.
	lockKept = time.Minute
	// syncTimeout is how long, in seconds, one question whether SB has what NB has may take.
	syncTimeout = 3
	northdSays  = "/run/ovn/ovn-northd.ctl"
)

// northdNodeCrashes cuts the power of the node with the ovn-northd that works, while another node leads the southbound database: that one's gate has to leave it, for another to get its lock. New pods of the others
// get a network. The node comes back without its databases, whose disk was its memory, and its members join anew.
func northdNodeCrashes(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	leader := leaderOf(t, l, "sb")
	worker := northdBut(t, l, leader)
	node := podNode(t, client, worker)
	at := time.Now()
	if err := l.Node(node).Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := func() {
		if err := l.Node(node).Start(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(back) // also when the test fails: whoever is next needs the node
	eventually(t, func() error {
		_, err := inCentral(t.Context(), l, leader, "nb", "ovn-nbctl", "--no-leader-only", "--wait=sb", fmt.Sprintf("--timeout=%d", syncTimeout), "sync")
		return err
	})
	took := time.Since(at)
	podsBut(t, l, client, node)
	t.Logf("%s crashed with the ovn-northd that worked, of %s; what was written to NB came to SB again after %s, and new pods of the other nodes ran after %s", node, worker, took.Round(10*time.Millisecond),
		time.Since(at).Round(100*time.Millisecond))
	if took > lockKept {
		t.Errorf("for %s nothing that was written to NB came to SB, want %s at most", took, lockKept)
	}
	again := time.Now()
	back()
	everyMemberSeesAll(t, l)
	t.Logf("%s and its members were back %s after its start", node, time.Since(again).Round(100*time.Millisecond))
	well(t, l)
}

// northdBut is the pod with the ovn-northd that works, which is not in this one: it is sent to another if need be.
func northdBut(t *testing.T, l *lab.Lab, not string) (pod string) {
	t.Helper()
	if pod = workingNorthd(t, l); pod != not {
		return pod
	}
	if _, err := inCentral(t.Context(), l, not, "northd", "ovn-appctl", "-t", northdSays, "pause"); err != nil { // which gives its lock away
		t.Fatal(err)
	}
	eventually(t, func() error {
		if pod = workingNorthd(t, l); pod == not {
			return fmt.Errorf("the ovn-northd of %s works still", pod)
		}
		return nil
	})
	if _, err := inCentral(t.Context(), l, not, "northd", "ovn-appctl", "-t", northdSays, "resume"); err != nil {
		t.Fatal(err)
	}
	return pod
}

// workingNorthd is the pod with the ovn-northd that works.
func workingNorthd(t *testing.T, l *lab.Lab) (pod string) {
	t.Helper()
	eventually(t, func() error {
		var said []string
		for i := range members {
			pod = fmt.Sprintf("ovn-central-%d", i)
			status, err := inCentral(t.Context(), l, pod, "northd", "ovn-appctl", "-t", northdSays, "status")
			if err == nil && strings.Contains(status, "Status: active") {
				return nil
			}
			said = append(said, fmt.Sprintf("%s: %s %v", pod, strings.TrimSpace(status), err))
		}
		return fmt.Errorf("no ovn-northd works: %s", strings.Join(said, "; "))
	})
	return pod
}
