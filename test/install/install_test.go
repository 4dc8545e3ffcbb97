package install

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/demo"
	"github.com/godwit-cni/godwit/test/lab/fixture"
)

const (
	// patience bounds each wait, on a machine five times slower than the one that this was written on.
	patience = 10 * time.Minute
	members  = 3
	labName  = "install"
	// switchAway bounds for how long the pods of a node are without a network while its Open vSwitch is replaced, on the userspace datapath: 1 to 3.5 s were seen, on idle and busy machines.
	switchAway = time.Minute
)

// raftBy is how the members of a database reach one another, as cluster/status says it.
var raftBy = map[string]string{"nb": " at ssl:", "sb": " at unix:"}

// TestInstall makes a lab whose nodes have nothing of OVN, applies yamls/, and uses what comes of it.
func TestInstall(t *testing.T) {
	l := labOfPods(t, members)
	client, err := l.Client()
	if err != nil {
		t.Fatal(err)
	}
	if !t.Run("Members", func(t *testing.T) { everyMemberSeesAll(t, l) }) {
		t.FailNow() // what follows would fail for the same reason
	}
	t.Run("NothingRunsOutsideOfPods", func(t *testing.T) { nothingOutside(t, l) })
	t.Run("ObserveDaemons", func(t *testing.T) { daemonsTell(t, l) })
	t.Run("KubectlDiagnose", func(t *testing.T) { diagnosed(t, l, client) })
	t.Run("PodsReachEachOther", func(t *testing.T) {
		if err := demo.Pods(t.Context(), demo.Config{Lab: l, Log: fixture.Logger(t), Out: t.Output()}, 6); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("NodeCertificate", func(t *testing.T) { nodeCertificate(t, l, client) })
	t.Run("OnlyListener", func(t *testing.T) { onlyListener(t, l) })
	t.Run("KubectlAsksOVN", func(t *testing.T) { kubectlAsksOVN(t, l, client) })
	t.Run("KubectlAsksOVNOfAVM", func(t *testing.T) { kubectlAsksOVNOfAVM(t, l) })
	t.Run("LeaderKilledWhilePodsStart", func(t *testing.T) { leaderKilled(t, l, client) })
	t.Run("MembersAllDeleted", func(t *testing.T) { allDeleted(t, l, client) })
	t.Run("Partitions", func(t *testing.T) { partitions(t, l, client) })
	t.Run("DiskFull", func(t *testing.T) { diskFull(t, l, client) })
	t.Run("Rolls", func(t *testing.T) { rolls(t, l, client) })
	if os.Getenv("AUTHORITIES") == "rotate" { // five minutes, most of them for kubelets that bring Secrets to pods
		t.Run("AuthoritiesRotate", func(t *testing.T) { authoritiesRotate(t, l, client) })
	}
	t.Run("DatabasesLost", func(t *testing.T) { databasesLost(t, l, client) })
	t.Run("VMMovesUnderFaults", func(t *testing.T) { moves(t, l, client) })
	t.Run("SwitchStartsAgain", func(t *testing.T) { switchStartsAgain(t, l, client) })
	t.Run("VMMigrates", func(t *testing.T) { // the demo fails if the VM's address, its port or one of its connections is not what it was
		if err := demo.Run(t.Context(), demo.Config{Lab: l, Log: fixture.Logger(t), Out: t.Output()}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("NorthdNodeCrashes", func(t *testing.T) { northdNodeCrashes(t, l, client) })
	if os.Getenv("MEMBERS") == "change" { // minutes, most of them for members that are given up
		t.Run("MembersChange", func(t *testing.T) { membersChange(t, client) })
	}
}

// TestInstallSingle: helm installs Godwit on nodes with the newest containerd, one node has the databases' only members, and the one without any uses them. Then Godwit is taken away again, and nothing of it is left.
func TestInstallSingle(t *testing.T) {
	fixture.Dir(t, labName, patience)
	l := upOfPods(t, lab.Config{Nodes: 2, Empty: true, Containerd: lab.ContainerdNew})
	before := inventories(t, l)
	godwit := helmed(t, l)
	runOn(t, godwit.client, "containerd://2.")
	said, err := clusterStatus(t.Context(), l, 0, "nb")
	if err != nil || strings.Count(said, raftBy["nb"]) != 1 || !strings.Contains(said, "Role: leader") {
		t.Errorf("the only member of NB says (%v):\n%s", err, said)
	}
	if err := demo.Pods(t.Context(), demo.Config{Lab: l, Log: fixture.Logger(t), Out: t.Output()}, 4); err != nil {
		t.Fatal(err)
	}
	t.Run("Upgrade", func(t *testing.T) { godwit.upgraded(t) })
	nobodyLeaves(t, godwit.client)
	t.Run("Uninstall", func(t *testing.T) { godwit.uninstalled(t, before) })
}

// runOn fails unless all nodes have such a runtime.
func runOn(t *testing.T, client kubernetes.Interface, runtime string) {
	t.Helper()
	nodes, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) == 0 {
		t.Fatalf("the cluster has %v (%v), want nodes", nodes, err)
	}
	for i := range nodes.Items {
		if n := &nodes.Items[i]; !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, runtime) {
			t.Errorf("%s runs on %s, want %s", n.Name, n.Status.NodeInfo.ContainerRuntimeVersion, runtime)
		}
	}
}

// labOfPods is a lab of the test's own, with Godwit on it.
func labOfPods(t *testing.T, nodes int) *lab.Lab {
	t.Helper()
	fixture.Dir(t, labName, patience)
	start := time.Now()
	smallDisks(t, upOfPods(t, lab.Config{Nodes: nodes, Empty: true}))
	l := upOfPods(t, lab.Config{Nodes: nodes})
	t.Logf("from nothing to %d ready nodes with the databases: %s", nodes, time.Since(start).Round(time.Second))
	return l
}

// upOfPods makes the test's lab, or goes on with it.
func upOfPods(t *testing.T, c lab.Config) *lab.Lab {
	t.Helper()
	c.Name, c.IPFamily, c.OVN, c.Keep, c.Log = labName, lab.DualStack, lab.OVNPods, true, fixture.Logger(t)
	l, err := lab.Up(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// clusterStatus is what a member says of a database's cluster.
func clusterStatus(ctx context.Context, l *lab.Lab, pod int, kind string) (string, error) {
	name := map[string]string{"nb": "OVN_Northbound", "sb": "OVN_Southbound"}[kind]
	return inCentral(ctx, l, fmt.Sprintf("ovn-central-%d", pod), kind, "ovs-appctl", "-t", "/run/ovn/ovn"+kind+"_db.ctl", "cluster/status", name)
}

// inCentral runs a program in a container of one of ovn-central's pods.
func inCentral(ctx context.Context, l *lab.Lab, pod, container string, argv ...string) (string, error) {
	return fixture.Kubectl(ctx, l, slices.Concat([]string{"-n", lab.Namespace, "exec", pod, "-c", container, "--"}, argv)...)
}

func everyMemberSeesAll(t *testing.T, l *lab.Lab) {
	for _, kind := range []string{"nb", "sb"} {
		for pod := range members {
			eventually(t, func() error {
				said, err := clusterStatus(t.Context(), l, pod, kind)
				if err != nil {
					return err
				}
				if n := strings.Count(said, raftBy[kind]); n != members || !strings.Contains(said, "Status: cluster member") || strings.Contains(said, "Leader: unknown") {
					return fmt.Errorf("member %d of %s has %d servers, want %d:\n%s", pod, kind, n, members, said)
				}
				return nil
			})
		}
	}
}

// nothingOutside: the machines supervise no daemon of OVN.
func nothingOutside(t *testing.T, l *lab.Lab) {
	names, err := l.LogNames()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names, "node1/kubelet") {
		t.Fatalf("the logs %v lack node1/kubelet: this test looks at the wrong thing", names)
	}
	for _, n := range names {
		if strings.Contains(n, "/ov") {
			t.Errorf("%s runs as a process of the machine", n)
		}
	}
}

// leaderKilled kills NB's leader while pods start. All of them start; for how long nobody could write is told.
func leaderKilled(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	const pods = 20
	leader := leaderOf(t, l, "nb")
	node := podNode(t, client, leader)
	probe := startWriting(t, l, node)
	namespace := "install-leader"
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(context.Background(), namespace, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	start := time.Now()
	if _, err := client.AppsV1().Deployments(namespace).Create(t.Context(), deployment(pods), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // some have begun, most have not
		if n, err := running(t.Context(), client, namespace); err != nil || n == 0 {
			return fmt.Errorf("no pod runs: %w", err)
		}
		return nil
	})
	before, err := running(t.Context(), client, namespace)
	if err != nil {
		t.Fatal(err)
	}
	killServer(t, l, node, "nb")
	at := time.Now()
	eventually(t, func() error {
		if n, err := running(t.Context(), client, namespace); err != nil || n != pods {
			return fmt.Errorf("%d of %d pods run: %w", n, pods, err)
		}
		return nil
	})
	all := time.Now()
	everyMemberSeesAll(t, l)
	gap := probe.stop(t, at)
	t.Logf("NB's leader %s on %s was killed when %d of %d pods ran; all ran %s after the kill (%s after they were made); the longest time without a write to NB was %s",
		leader, node, before, pods, all.Sub(at).Round(100*time.Millisecond), all.Sub(start).Round(100*time.Millisecond), gap.Round(10*time.Millisecond))
	if gap > time.Minute {
		t.Errorf("nobody could write to NB for %s", gap)
	}
}

// allDeleted deletes all members at once: the first to come back must not wait for others that wait for it.
func allDeleted(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	err := client.CoreV1().Pods(lab.Namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=ovn-central"})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	eventually(t, func() error {
		set, err := client.AppsV1().StatefulSets(lab.Namespace).Get(t.Context(), "ovn-central", metav1.GetOptions{})
		if err == nil && set.Status.ReadyReplicas == members {
			err = fmt.Errorf("none has gone yet")
		}
		return err
	})
	everyMemberSeesAll(t, l)
	pairs(t, l)
	t.Logf("pods started and reached each other %s after all members were deleted", time.Since(start).Round(100*time.Millisecond))
}

// switchStartsAgain deletes a node's Open vSwitch, as an update does: the node gets its underlay back, and its pods are reached.
func switchStartsAgain(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	const node = "node2"
	find := func() (*corev1.Pod, error) { return podOn(t.Context(), client, "ovs-node", node) }
	old, err := find()
	if err != nil {
		t.Fatal(err)
	}
	probes := watched(t, l, client, func() {
		replaceSwitch(t, l, client, old, find)
		pairs(t, l)
	})
	for i := range probes {
		p := &probes[i]
		t.Logf("Open vSwitch of %s was restarted: of %d packets to %s %d were lost, the longest time without one was %s", node, p.Counts.Sent, p.Peer, p.Counts.Lost,
			p.Gap.Length().Round(time.Millisecond))
		if p.Gap.Open || p.Gap.Length() > switchAway {
			t.Errorf("%s was not heard for %s, want at most %s", p.Peer, p.Gap.Length(), switchAway)
		}
	}
}

// replaceSwitch deletes node2's pod of Open vSwitch, and returns when the next one is ready and the underlay has its address.
func replaceSwitch(t *testing.T, l *lab.Lab, client kubernetes.Interface, old *corev1.Pod, find func() (*corev1.Pod, error)) {
	if err := client.CoreV1().Pods(lab.Namespace).Delete(t.Context(), old.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		p, err := find()
		if err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.UID != old.UID {
				return nil
			}
		}
		return fmt.Errorf("pod %s is not ready", p.Name)
	})
	eventually(t, func() error {
		addresses, err := l.Exec(t.Context(), "node2", "ip", "-br", "address")
		if err == nil && !strings.Contains(addresses, "172.30.1.12/24") {
			err = fmt.Errorf("the underlay's address is gone:\n%s", addresses)
		}
		return err
	})
}

// leaderOf is the pod with the member that leads a database.
func leaderOf(t *testing.T, l *lab.Lab, kind string) (pod string) {
	eventually(t, func() error {
		for i := range members {
			said, err := clusterStatus(t.Context(), l, i, kind)
			if err == nil && strings.Contains(said, "Role: leader") {
				pod = fmt.Sprintf("ovn-central-%d", i)
				return nil
			}
		}
		return fmt.Errorf("%s has no leader", kind)
	})
	return pod
}

// killServer kills a database's server on a node, by the socket in its command line: the shell's own begins otherwise.
func killServer(t *testing.T, l *lab.Lab, node, kind string) {
	t.Helper()
	kill := fmt.Sprintf(`for p in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null <$p/cmdline | grep -q '^ovsdb-server.*ovn%s_db.sock' && kill -9 ${p#/proc/} && echo killed; done; true`, kind)
	killed, err := l.Exec(t.Context(), node, "sh", "-c", kill)
	if err != nil || !strings.Contains(killed, "killed") {
		t.Fatalf("kill the server of %s on %s: %q, %v", kind, node, killed, err)
	}
}

func podNode(t *testing.T, client kubernetes.Interface, name string) string {
	p, err := client.CoreV1().Pods(lab.Namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p.Spec.NodeName
}

func deployment(pods int32) *appsv1.Deployment {
	labels, grace := map[string]string{"app": "many"}, int64(1)
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "many"}, Spec: appsv1.DeploymentSpec{
		Replicas: &pods, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "echo", Image: lab.BusyboxImage, Command: []string{"echoserver"}}},
		}},
	}}
}

// running counts the pods that run and have addresses of both families.
func running(ctx context.Context, client kubernetes.Interface, namespace string) (int, error) {
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range list.Items {
		if p := &list.Items[i]; p.Status.Phase == corev1.PodRunning && len(p.Status.PodIPs) == 2 {
			n++
		}
	}
	return n, nil
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	fixture.Eventually(t, patience, check)
}
