package install

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// probeInterval is between two packets from one pod to another.
const probeInterval = 10 * time.Millisecond

// watched lets a pod of node1 send to one of node2 and back while f runs, and returns what became of that, one of each family.
func watched(t *testing.T, l *lab.Lab, client kubernetes.Interface, f func()) []traffic.Probes {
	t.Helper()
	ns := newNamespace(t, client)
	from, to := echoPod(t, client, ns, "node1"), echoPod(t, client, ns, "node2")
	fixture.Answer(t, fixture.Place(t, l, "node2", to[0]))
	run, err := traffic.Begin(t.Context(), fixture.Place(t, l, "node1", from[0]), traffic.Spec{
		Peers: to, Ports: fixture.Ports(), Probe: traffic.Probing{Interval: traffic.Duration{Duration: probeInterval}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f()
	result, err := run.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range result.Probes {
		if p := &result.Probes[i]; p.Counts.Sent < 100 {
			t.Fatalf("%d packets were sent to %s: that says nothing", p.Counts.Sent, p.Peer)
		}
	}
	return result.Probes
}

// echoPod makes a pod, and returns its addresses.
func echoPod(t *testing.T, client kubernetes.Interface, namespace, node string) (ips []netip.Addr) {
	t.Helper()
	grace := int64(1)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "echo-" + node}, Spec: corev1.PodSpec{
		NodeName: node, TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "echo", Image: lab.BusyboxImage, Command: []string{"echoserver"}}},
	}}
	if _, err := client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		p, err := client.CoreV1().Pods(namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
		if err != nil || p.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("pod %s does not run: %w", pod.Name, err)
		}
		ips = nil
		for _, a := range p.Status.PodIPs {
			ip, err := netip.ParseAddr(a.IP)
			if err != nil {
				return err
			}
			ips = append(ips, ip)
		}
		return nil
	})
	return ips
}

// silence bounds the longest time without an answer while parts are restarted: a machine with nothing to spare may forward late.
const silence = 10 * time.Second

// phase is the time in which a part was restarted.
type phase struct {
	part     string
	from, to time.Time
}

// rolls restarts all of Godwit but Open vSwitch, part by part, as an update does, with new certificates for everybody: no packet between pods is lost.
func rolls(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	var phases []phase
	roll := func(part string, settled func()) {
		p := phase{part: part, from: time.Now()}
		rollout(t, l, part)
		settled()
		p.to = time.Now()
		phases = append(phases, p)
	}
	nobodyLeaves(t, client)
	counted := counters(t, l)
	probes := watched(t, l, client, func() {
		before := renewCertificates(t, l, client)
		roll("deployment/godwit-controller", func() {})
		roll("daemonset/godwit-agent", func() {
			for _, name := range l.NodeNames() {
				eventually(t, func() error {
					now, err := l.Exec(t.Context(), name, "cat", "/etc/godwit/tls/tls.crt")
					if err == nil && now == before[name] {
						err = fmt.Errorf("%s has the certificate that it had", name)
					}
					return err
				})
			}
		})
		roll("statefulset/ovn-central", func() { everyMemberSeesAll(t, l) })
		roll("daemonset/ovn-controller", func() { flowsInPlace(t, l) })
	})
	for i := range probes {
		judgeRolls(t, &probes[i], phases)
	}
	if t.Failed() {
		t.Logf("what Open vSwitch counted meanwhile:\n%s", grown(counted, counters(t, l)))
	}
}

// nobodyLeaves waits until the pods of earlier tests are gone, and the namespaces that take theirs with them: besidePods says what a link that goes does to others.
func nobodyLeaves(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	eventually(t, func() error {
		namespaces, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range namespaces.Items {
			if n := &namespaces.Items[i]; n.DeletionTimestamp != nil {
				return fmt.Errorf("namespace %s is being deleted still", n.Name)
			}
		}
		pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %s/%s is being deleted still", p.Namespace, p.Name)
			}
		}
		return nil
	})
}

const (
	// strays is how many times something may be lost while one part is restarted, on a machine where something else makes links meanwhile: see besidePods. Without that it is none.
	strays = 2
	// stray is how long it is for which packets are lost then: on an idle machine one is.
	stray = 100 * time.Millisecond
)

// moments counts how often something was lost: what was sent within so short a time is one loss.
func moments(lost []time.Time) (n int) {
	var first time.Time
	for _, at := range lost {
		if n == 0 || at.Sub(first) > stray {
			n, first = n+1, at
		}
	}
	return n
}

func TestMoments(t *testing.T) {
	at := func(ms ...int) (out []time.Time) {
		for _, m := range ms {
			out = append(out, time.Unix(1000, 0).Add(time.Duration(m)*time.Millisecond))
		}
		return out
	}
	for want, lost := range map[int][]time.Time{0: nil, 1: at(0, 10, 100), 3: at(0, 50, 110, 120, 500)} {
		if got := moments(lost); got != want {
			t.Errorf("%v are %d losses, want %d", lost, got, want)
		}
	}
}

// judgeRolls says what was lost while which part was restarted.
func judgeRolls(t *testing.T, p *traffic.Probes, phases []phase) {
	t.Helper()
	for _, ph := range phases {
		lost, gap := p.LostWithin(ph.from, ph.to), p.Within(ph.from, ph.to)
		t.Logf("%s was restarted in %s: %d packets to %s were lost, the longest time without an answer was %s", ph.part, ph.to.Sub(ph.from).Round(100*time.Millisecond), len(lost), p.Peer,
			gap.Length().Round(time.Millisecond))
		if moments(lost) > strays {
			t.Errorf("%s was restarted, and of the packets to %s those sent after %v were lost: want %d moments at most", ph.part, p.Peer, since(ph.from, lost), strays)
		}
		if gap.Open || gap.Length() > silence {
			t.Errorf("%s was restarted, and no answer came from %s for %s", ph.part, p.Peer, gap.Length())
		}
	}
}

// since are the times from a moment to others.
func since(from time.Time, at []time.Time) (out []time.Duration) {
	for _, a := range at {
		out = append(out, a.Sub(from).Round(time.Millisecond))
	}
	return out
}

// flowsInPlace returns when every node's ovn-controller has done what the southbound database asks for.
func flowsInPlace(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, func() error {
		_, err := pluginSays(t.Context(), l, "", "nbctl", "--", "--wait=hv", "--timeout=20", "sync")
		return err
	})
}

// counters are each node's Open vSwitch's own, of everything that it counts: ovs-appctl(8), coverage/show.
func counters(t *testing.T, l *lab.Lab) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, node := range l.NodeNames() {
		said, err := pluginSays(t.Context(), l, "", "appctl", node, "coverage/show")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range counter.FindAllStringSubmatch(said, -1) {
			if out[node+" "+m[1]], err = strconv.Atoi(m[2]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out
}

var counter = regexp.MustCompile(`(?m)^(\S+) .* total: (\d+)$`)

// grown says by how much counters have grown.
func grown(before, now map[string]int) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if n := now[key] - before[key]; n > 0 {
			out = append(out, fmt.Sprintf("%s %d", key, n))
		}
	}
	return strings.Join(out, "\n")
}

// renewCertificates takes everybody's away, and returns those that nodes had. Controllers and agents that start make others.
func renewCertificates(t *testing.T, l *lab.Lab, client kubernetes.Interface) map[string]string {
	t.Helper()
	before := map[string]string{}
	for _, name := range l.NodeNames() {
		before[name] = nodeCertificateOf(t, l, name)
		if _, err := l.Exec(t.Context(), name, "rm", "-r", "/etc/godwit/tls"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"godwit-ovn-server", "godwit-ovn-admin"} {
		if err := client.CoreV1().Secrets(lab.Namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return before
}

func nodeCertificateOf(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	text, err := l.Exec(t.Context(), node, "cat", "/etc/godwit/tls/tls.crt")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// rollout restarts parts, all at once, and returns when each is ready.
func rollout(t *testing.T, l *lab.Lab, parts ...string) {
	t.Helper()
	if _, err := fixture.Kubectl(t.Context(), l, append([]string{"-n", lab.Namespace, "rollout", "restart"}, parts...)...); err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if _, err := fixture.Kubectl(t.Context(), l, "-n", lab.Namespace, "rollout", "status", "--timeout="+patience.String(), part); err != nil {
			t.Fatal(err)
		}
	}
}
