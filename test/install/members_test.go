package install

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
)

const centralLabel = "godwit.dev/ovn-central"

// membersChange lets one node more than there are replicas hold the databases, updates and drains them so, and makes one member of the three and three of the one, as docs/ovn-pods.md says. Pods hear each other all along, or for
// as long as they do not when all copies are lost.
func membersChange(t *testing.T, client kubernetes.Interface) {
	l := upOfPods(t, lab.Config{Nodes: members + 1})
	all := l.NodeNames()
	listed(t, l, client, all...)
	clients(t, l)
	labelled(t, client, all...)
	well(t, l)
	t.Run("UpdateWithASpareNode", func(t *testing.T) { spareUpdate(t, l, client) })
	t.Run("DrainWithASpareNode", func(t *testing.T) { spareDrain(t, l, client) })
	t.Run("OneFromThree", func(t *testing.T) { oneFromThree(t, l, client) })
	t.Run("ThreeFromOne", func(t *testing.T) { threeFromOne(t, l, client) })
}

// listed names the nodes whose addresses are the databases', in godwit-config: for what starts from now on.
func listed(t *testing.T, l *lab.Lab, client kubernetes.Interface, nodes ...string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"data": map[string]string{
		"GODWIT_NB_REMOTE": remotes(l, nbPort, nodes), "GODWIT_SB_REMOTE": remotes(l, sbPort, nodes), "GODWIT_SB_GATE": remotes(l, gatePort, nodes),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().ConfigMaps(lab.Namespace).Patch(t.Context(), "godwit-config", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// clients are started anew, with the addresses that are listed.
func clients(t *testing.T, l *lab.Lab) {
	t.Helper()
	rollout(t, l, "daemonset/godwit-agent", "deployment/godwit-controller")
}

// labelled lets these nodes hold the databases, and no others.
func labelled(t *testing.T, client kubernetes.Interface, nodes ...string) {
	t.Helper()
	list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		name, label := list.Items[i].Name, "null"
		if slices.Contains(nodes, name) {
			label = `""`
		}
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, centralLabel, label)
		if _, err := client.CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// places are the nodes with ovn-central's pods, in the pods' order.
func places(t *testing.T, client kubernetes.Interface) (nodes []string) {
	t.Helper()
	for i := range members {
		nodes = append(nodes, podNode(t, client, fmt.Sprintf("ovn-central-%d", i)))
	}
	return nodes
}

// spareUpdate restarts central where a pod that is made anew may go to a node without a copy.
func spareUpdate(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	before := places(t, client)
	start := time.Now()
	writes := startWriting(t, l, "")
	probes := watched(t, l, client, func() {
		rollout(t, l, "statefulset/ovn-central")
		everyMemberSeesAll(t, l)
	})
	took := time.Since(start)
	t.Logf("from %v to %v in %s; the longest time without a write to NB was %s", before, places(t, client), took.Round(100*time.Millisecond), writes.stop(t, start).Round(10*time.Millisecond))
	well(t, l)
	for i := range probes {
		goesOn(t, &probes[i], "while central was updated with a spare node")
	}
}

// spareDrain drains the node of NB's leader: its pod has one place to go to, where there is no copy, or that of a member that was removed.
func spareDrain(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	before := places(t, client)
	leader := leaderOf(t, l, "nb")
	node := podNode(t, client, leader)
	spare := slices.DeleteFunc(l.NodeNames(), func(n string) bool { return slices.Contains(before, n) })[0]
	start := time.Now()
	writes := startWriting(t, l, node)
	var drained time.Duration
	probes := watched(t, l, client, func() {
		if _, err := fixture.Kubectl(t.Context(), l, "drain", node, "--pod-selector=app.kubernetes.io/component=ovn-central", "--ignore-daemonsets", "--delete-emptydir-data",
			"--timeout="+patience.String()); err != nil {
			t.Fatal(err)
		}
		drained = time.Since(start)
		eventually(t, func() error {
			pod, err := client.CoreV1().Pods(lab.Namespace).Get(t.Context(), leader, metav1.GetOptions{})
			if err == nil && pod.Spec.NodeName != spare {
				err = fmt.Errorf("pod %s is on node %q, want it on %s", leader, pod.Spec.NodeName, spare)
			}
			return err
		})
		everyMemberSeesAll(t, l)
		if _, err := fixture.Kubectl(t.Context(), l, "-n", lab.Namespace, "rollout", "status", "statefulset/ovn-central", "--timeout="+patience.String()); err != nil { // until the former member is removed
			t.Fatal(err)
		}
	})
	t.Logf("%s was drained of %s in %s; the longest time without a write to NB was %s, all was well after %s", node, leader, drained.Round(100*time.Millisecond),
		writes.stop(t, start).Round(10*time.Millisecond), time.Since(start).Round(100*time.Millisecond))
	if _, err := fixture.Kubectl(t.Context(), l, "uncordon", node); err != nil {
		t.Fatal(err)
	}
	well(t, l)
	for i := range probes {
		goesOn(t, &probes[i], "while a node with a member was drained")
	}
}

// oneFromThree: all copies are lost on purpose, and one node makes new ones.
func oneFromThree(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	only := places(t, client)[0]
	before := identities(t, client)
	start := time.Now()
	probes := watched(t, l, client, func() {
		loseAll(t, l)
		labelled(t, client, only)
		listed(t, l, client, only)
		scaleCentral(t, l, 1)
		clients(t, l)
		portsAre(t, l, before)
		rollout(t, l, "daemonset/ovn-controller")
		pairs(t, l)
	})
	t.Logf("one member of three after %s, on %s", time.Since(start).Round(100*time.Millisecond), only)
	well(t, l)
	sameAs(t, client, before)
	for i := range probes {
		t.Logf("of %d packets to %s %d were lost, the longest time without one was %s", probes[i].Counts.Sent, probes[i].Peer, probes[i].Counts.Lost, probes[i].Gap.Length().Round(time.Millisecond))
		if p := &probes[i]; p.Gap.Open || p.Gap.Length() > lostFor {
			t.Errorf("%s was not heard for %s", p.Peer, p.Gap.Length())
		}
	}
}

// threeFromOne adds two members to the only one.
func threeFromOne(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	only := podNode(t, client, "ovn-central-0")
	others := slices.DeleteFunc(l.NodeNames(), func(n string) bool { return n == only })[:members-1]
	nodes := append([]string{only}, others...)
	start := time.Now()
	writes := startWriting(t, l, "")
	probes := watched(t, l, client, func() {
		listed(t, l, client, nodes...)
		clients(t, l)
		rollout(t, l, "statefulset/ovn-central")
		labelled(t, client, nodes...)
		scaleCentral(t, l, members)
		everyMemberSeesAll(t, l)
		pairs(t, l)
	})
	t.Logf("three members of one after %s, on %v; the longest time without a write to NB was %s", time.Since(start).Round(100*time.Millisecond), nodes, writes.stop(t, start).Round(10*time.Millisecond))
	well(t, l)
	for i := range probes {
		goesOn(t, &probes[i], "while one member became three")
	}
}
