package install

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/demo"
	"github.com/godwit-cni/godwit/test/lab/fixture"
)

// lostFor is for how long pods may not hear each other when all nodes are given new databases.
const lostFor = time.Minute

// databasesLost removes every copy of both databases, and brings them back as docs/ovn-pods.md says: from the API, with the same addresses, and no pod is restarted.
func databasesLost(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	var took, back time.Duration
	probes := watched(t, l, client, func() {
		before := identities(t, client)
		start := time.Now()
		loseAll(t, l)
		scaleCentral(t, l, members)
		everyMemberSeesAll(t, l)
		back = time.Since(start)
		portsAre(t, l, before)
		rollout(t, l, "daemonset/ovn-controller")
		pairs(t, l)
		took = time.Since(start)
		sameAs(t, client, before)
	})
	well(t, l)
	for i := range probes {
		p := &probes[i]
		t.Logf("both databases were lost: new ones after %s, new pods reached each other after %s; of %d packets to %s %d were lost, the longest time without one was %s",
			back.Round(100*time.Millisecond), took.Round(100*time.Millisecond), p.Counts.Sent, p.Peer, p.Counts.Lost, p.Gap.Length().Round(time.Millisecond))
		if p.Gap.Open || p.Gap.Length() > lostFor {
			t.Errorf("%s was not heard for %s", p.Peer, p.Gap.Length())
		}
	}
}

// loseAll ends central, and removes all that is remembered of its databases.
func loseAll(t *testing.T, l *lab.Lab) {
	t.Helper()
	scaleCentral(t, l, 0)
	if _, err := fixture.Kubectl(t.Context(), l, "-n", lab.Namespace, "delete", "configmap", "godwit-ovn"); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.NodeNames() {
		if _, err := l.Exec(t.Context(), node, "sh", "-c", "rm -f /var/lib/godwit/ovn/*"); err != nil {
			t.Fatal(err)
		}
	}
}

// portsAre waits until the new southbound database has the ports of pods that run.
func portsAre(t *testing.T, l *lab.Lab, pods map[string]identity) {
	t.Helper()
	eventually(t, func() error {
		now, err := boundPorts(t.Context(), l)
		if err != nil {
			return err
		}
		for pod := range pods {
			if port := "pod/" + pod + "/default"; !slices.Contains(now, port) {
				return fmt.Errorf("the new southbound database lacks %s: it has %v", port, now)
			}
		}
		return nil
	})
}

// sameAs fails if pods that were there have other addresses, or were restarted.
func sameAs(t *testing.T, client kubernetes.Interface, before map[string]identity) {
	t.Helper()
	after := identities(t, client)
	maps.DeleteFunc(after, func(pod string, _ identity) bool { _, was := before[pod]; return !was })
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("pods have other addresses, or were restarted (-before +after):\n%s", d)
	}
}

// pairs waits until new pods reach each other.
func pairs(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, func() error {
		return demo.Pods(t.Context(), demo.Config{Lab: l, Log: slog.New(slog.DiscardHandler), Out: t.Output()}, members)
	})
}

// scaleCentral gives ovn-central so many pods, and waits until there are none, if none are wanted.
func scaleCentral(t *testing.T, l *lab.Lab, replicas int) {
	t.Helper()
	if _, err := fixture.Kubectl(t.Context(), l, "-n", lab.Namespace, "scale", "statefulset", "ovn-central", fmt.Sprintf("--replicas=%d", replicas)); err != nil {
		t.Fatal(err)
	}
	if replicas == 0 {
		if _, err := fixture.Kubectl(t.Context(), l, "-n", lab.Namespace, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=ovn-central", "--timeout="+patience.String()); err != nil {
			t.Fatal(err)
		}
	}
}

// identity is what a pod must not lose.
type identity struct {
	UID      string
	IPs      []corev1.PodIP
	Restarts int32
}

// identities are those of pods on the pod network, in namespaces that stay.
func identities(t *testing.T, client kubernetes.Interface) map[string]identity {
	t.Helper()
	namespaces, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	going := map[string]bool{}
	for i := range namespaces.Items {
		going[namespaces.Items[i].Name] = namespaces.Items[i].DeletionTimestamp != nil
	}
	list, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]identity{}
	for i := range list.Items {
		p := &list.Items[i]
		if going[p.Namespace] || p.Spec.HostNetwork || p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
			continue
		}
		id := identity{UID: string(p.UID), IPs: p.Status.PodIPs}
		for _, c := range p.Status.ContainerStatuses {
			id.Restarts += c.RestartCount
		}
		out[p.Namespace+"/"+p.Name] = id
	}
	return out
}

// boundPorts are the southbound database's ports of pods and nodes.
func boundPorts(ctx context.Context, l *lab.Lab) ([]string, error) {
	said, err := inCentral(ctx, l, "ovn-central-0", "sb", "ovn-sbctl", "--no-leader-only", "--timeout=20", "--bare", "--columns=logical_port", "find", "port_binding", `type=""`)
	return strings.Fields(said), err
}
