package install

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// probeInterval is between two packets from one pod to another.
const probeInterval = 10 * time.Millisecond

// watched lets a pod of node1 send to one of node2 and back while f runs, and returns what became of that, one of each family.
func watched(t *testing.T, l *lab.Lab, client kubernetes.Interface, f func()) []traffic.Probes {
	t.Helper()
	ns, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "install-watched-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	from, to := echoPod(t, client, ns.Name, "node1"), echoPod(t, client, ns.Name, "node2")
	answer(t, placeOf(t, l, "node2", to[0]))
	run, err := traffic.Begin(t.Context(), placeOf(t, l, "node1", from[0]), traffic.Spec{
		Peers: to, Ports: probePorts, Probe: traffic.Probing{Interval: traffic.Duration{Duration: probeInterval}},
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

// probePorts leave those of the pod's own server alone.
var probePorts = traffic.Ports{Echo: 1007, Sink: 1009, Source: 1019, Probe: 1007, Control: 1008}

func placeOf(t *testing.T, l *lab.Lab, node string, ip netip.Addr) traffic.Place {
	t.Helper()
	path, err := l.PodNamespace(node, ip)
	if err != nil {
		t.Fatal(err)
	}
	return traffic.Place{Namespace: path}
}

// answer answers probes in a pod until the test ends.
func answer(t *testing.T, at traffic.Place) {
	t.Helper()
	server, err := traffic.Listen(t.Context(), traffic.ServerConfig{Place: at, Ports: probePorts, Log: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
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

// lossPermille and silence bound what is lost. On idle machines it was none to three of 2,165 packets, in a pause of 0.2 s; where ovs-vswitchd, which forwards here, gets no processor for a second,
// its queues overflow too.
const (
	lossPermille = 10
	silence      = 10 * time.Second
)

// rolls restarts all of Godwit but Open vSwitch, as an update does, with new certificates for everybody: packets between pods go on.
func rolls(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	start := time.Now()
	probes := watched(t, l, client, func() {
		before := renewCertificates(t, l, client)
		rollout(t, l, "deployment/godwit-controller", "daemonset/godwit-agent")
		for _, name := range l.NodeNames() {
			if now := nodeCertificateOf(t, l, name); now == before[name] {
				t.Errorf("%s has the certificate that it had", name)
			}
		}
		rollout(t, l, "statefulset/ovn-central", "daemonset/ovn-controller")
		everyMemberSeesAll(t, l)
	})
	for i := range probes {
		p := &probes[i]
		t.Logf("agents, controllers, central and ovn-controllers were restarted in %s: of %d packets to %s %d were lost, the longest time without one was %s",
			time.Since(start).Round(time.Second), p.Counts.Sent, p.Peer, p.Counts.Lost, p.Gap.Length().Round(time.Millisecond))
		if p.Counts.Lost*1000 > p.Counts.Sent*lossPermille || p.Gap.Open || p.Gap.Length() > silence {
			t.Errorf("of %d packets to %s %d were lost, none came for %s: want at most %d of a thousand lost", p.Counts.Sent, p.Peer, p.Counts.Lost, p.Gap.Length(), lossPermille)
		}
	}
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
	if _, err := kubectl(t.Context(), l, append([]string{"-n", lab.Namespace, "rollout", "restart"}, parts...)...); err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if _, err := kubectl(t.Context(), l, "-n", lab.Namespace, "rollout", "status", "--timeout="+patience.String(), part); err != nil {
			t.Fatal(err)
		}
	}
}
