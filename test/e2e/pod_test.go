package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// Pods reach each other on one node and on several, on every address, over HTTP, TCP and UDP, untranslated; the kubelet's probes reach all of them.
func TestPodReachability(t *testing.T) {
	ns := namespace(t, nil)
	var want int
	for _, node := range cluster.NodeNames() {
		for i := range 2 {
			create(t, server(ns, fmt.Sprintf("%s-%d", node, i), node))
			want++
		}
	}
	pods := ready(t, ns, want)
	var list []reach.Pod
	for _, p := range pods {
		if len(p.IPs) != families() {
			t.Errorf("%s has addresses %v, want %d", p.Name, p.IPs, families())
		}
		list = append(list, p)
	}
	m := reachEachOther(t, list...)
	if got, want := m.Asked(), want*want*families(); got != want {
		t.Errorf("%d pairs asked, want %d", got, want)
	}
	a, b := pods["node1-0"], pods["node2-0"]
	for i, ip := range b.IPs {
		for _, got := range probe(t, a, target("tcp", ip, 7), target("udp", ip, 7)) {
			if want := a.IPs[i].String() + " probe"; got != want {
				t.Errorf("%s answers %q, want %q", ip, got, want)
			}
		}
	}
	consistent(t)
}

// Pods and what runs on the nodes' own network reach each other: the node's processes, and host-network pods on the same node and on others.
func TestPodAndHost(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "pod", "node1"), onHost(ns, "host-same", "node1"), onHost(ns, "host-other", "node2"))
	pods := ready(t, ns, 3)
	for _, host := range []string{"host-same", "host-other"} {
		for i, ip := range pods[host].IPs {
			probe(t, pods["pod"], target("http", ip, 8080))
			probe(t, pods[host], target("http", pods["pod"].IPs[i], 80))
		}
	}
	for _, node := range cluster.NodeNames() {
		for _, ip := range pods["pod"].IPs {
			machineProbe(t, node, target("http", ip, 80))
		}
	}
}

// What leaves the cluster has the address of the node where the pod runs.
func TestPodOutside(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "one", "node1"), server(ns, "two", "node2"))
	for _, p := range ready(t, ns, 2) {
		for i, outside := range cluster.OutsideIPs() {
			node := cluster.NodeIPs(p.Node)[i].String()
			for _, got := range probe(t, p, target("tcp", outside, 7), target("udp", outside, 7), target("http", outside, 80)) {
				if !strings.HasPrefix(got, node+" ") {
					t.Errorf("%s on %s: the outside saw %q, want %s", p.Name, p.Node, got, node)
				}
			}
		}
	}
}

// hostPort, by the chained portmap plugin, from another node and from outside.
func TestPodHostPort(t *testing.T) {
	ns := namespace(t, nil)
	p := server(ns, "p", "node1")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8088}}
	create(t, p)
	ready(t, ns, 1)
	for _, ip := range cluster.NodeIPs("node1") {
		got := machineProbe(t, "outside", target("http", ip, 8088))[0]
		client, err := netip.ParseAddr(strings.Fields(got + " -")[0])
		if err != nil || !slices.Contains(cluster.OutsideIPs(), client) {
			t.Errorf("the pod sees the outside as %q, want one of %v", got, cluster.OutsideIPs())
		}
		machineProbe(t, "node2", target("http", ip, 8088))
	}
}

// The bandwidth annotations hold, in both directions: TCP gets no more than the limit, and without a limit far more.
func TestPodBandwidth(t *testing.T) {
	const limit = 10e6
	ns := namespace(t, nil)
	p := server(ns, "limited", "node1")
	p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "10M"}
	create(t, p, server(ns, "free", "node1"))
	ready(t, ns, 2)
	for _, direction := range []string{"egress", "ingress"} {
		limited, free := throughput(t, ns, "limited", direction), throughput(t, ns, "free", direction)
		t.Logf("%s: %.1f Mbit/s limited to %.0f, %.1f without", direction, limited/1e6, limit/1e6, free/1e6)
		if limited > 1.3*limit || limited < limit/10 {
			t.Errorf("%s is %.1f Mbit/s, want about %.0f", direction, limited/1e6, limit/1e6)
		}
		if free < 2*limit {
			t.Errorf("%s without a limit is %.1f Mbit/s: the comparison means nothing", direction, free/1e6)
		}
	}
}

// throughput is what iperf3 measures for three seconds between a pod's network namespace and the outside, in bits per second.
func throughput(t *testing.T, ns, pod, direction string) float64 {
	t.Helper()
	port := string(ident.PodPort(ns, pod, ident.DefaultNetwork))
	out, err := cluster.Exec(t.Context(), "node1", "ovs-vsctl", "--format=json", "--columns=external_ids", "find", "Interface", `external_ids:iface-id="`+port+`"`)
	netns := regexp.MustCompile(`"godwit.dev/netns","([^"]+)"`).FindStringSubmatch(out)
	if err != nil || netns == nil {
		t.Fatalf("namespace of %s: %s %v", port, out, err)
	}
	cmd := []string{"nsenter", "--net=" + netns[1], "iperf3", "-J", "-t", "3", "-c", cluster.OutsideIPs()[0].String()}
	if direction == "ingress" {
		cmd = append(cmd, "-R")
	}
	out, err = cluster.Exec(t.Context(), "node1", cmd...)
	if err != nil {
		t.Fatalf("%s %v", out, err)
	}
	var result struct {
		End struct {
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatalf("iperf3 printed %q: %v", out, err)
	}
	return result.End.SumReceived.BitsPerSecond
}

// kubectl exec, logs and port-forward.
func TestPodKubectl(t *testing.T) {
	ns := namespace(t, nil)
	p := server(ns, "p", "node2")
	p.Spec.Containers[0].Command = []string{"/bin/sh", "-c", "echo hello; exec /bin/echoserver -name p"}
	p.Spec.Containers[0].Args = nil
	create(t, p)
	ready(t, ns, 1)
	if out, err := kubectl(t.Context(), "-n", ns, "logs", "p"); err != nil || !strings.Contains(out, "hello") {
		t.Errorf("logs: %q %v", out, err)
	}
	if out, err := inPod(t.Context(), ns, "p", "hostname"); err != nil || strings.TrimSpace(out) != "p" {
		t.Errorf("exec: %q %v", out, err)
	}
	portForward(t, ns)
}

// Packets of the pods' full MTU pass between nodes, larger ones do not leave the pod.
func TestPodMTU(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "a", "node1"), server(ns, "b", "node2"))
	pods := ready(t, ns, 2)
	id := identity(t, ns, "a")
	out, err := inPod(t.Context(), ns, "a", "cat", "/sys/class/net/eth0/mtu")
	if err != nil || strings.TrimSpace(out) != fmt.Sprint(id.MTU) {
		t.Errorf("eth0 has MTU %q, the identity %d: %v", out, id.MTU, err)
	}
	for _, ip := range pods["b"].IPs {
		headers := 28 // IPv4 and ICMP
		if ip.Is6() {
			headers = 48
		}
		eventually(t, settleTimeout, func(ctx context.Context) error {
			out, err := inPod(ctx, ns, "a", "ping", "-c", "2", "-W", "3", "-s", fmt.Sprint(id.MTU-headers), ip.String())
			if err != nil {
				err = fmt.Errorf("full packets to %s: %s %w", ip, out, err)
			}
			return err
		})
	}
}

func identity(t *testing.T, ns, name string) v1alpha1.Identity {
	t.Helper()
	var p corev1.Pod
	if err := cluster.api.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: name}, &p); err != nil {
		t.Fatal(err)
	}
	id, err := v1alpha1.ParseIdentity(p.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A namespace with a Subnet of its own; pods of two Subnets reach each other through the router.
func TestPodSubnet(t *testing.T) {
	ns := namespace(t, map[string]string{"subnet": "e2e"})
	other := namespace(t, nil)
	v4, v6 := "10.77.0.0/24", "fd00:77::/64"
	cidrs := map[string][]string{"dual": {v4, v6}, "ipv4": {v4}, "ipv6": {v6}}[cluster.IPFamily()]
	s := &v1alpha1.Subnet{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e"},
		Spec:       v1alpha1.SubnetSpec{CIDRs: cidrs, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"subnet": "e2e"}}},
	}
	if err := cluster.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.api.Delete(context.WithoutCancel(t.Context()), s) })
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		if err := cluster.api.Get(ctx, types.NamespacedName{Name: "e2e"}, s); err != nil {
			return err
		}
		if s.Status.AvailableIPs == 0 {
			return fmt.Errorf("Subnet e2e is not ready: %+v", s.Status)
		}
		return nil
	})
	create(t, server(ns, "a", "node1"), server(ns, "b", "node2"), server(other, "c", "node1"))
	pods := ready(t, ns, 2)
	c := ready(t, other, 1)["c"]
	for _, p := range pods {
		for i, ip := range p.IPs {
			if !netip.MustParsePrefix(cidrs[i]).Contains(ip) {
				t.Errorf("%s has %s, want an address of %s", p.Name, ip, cidrs[i])
			}
		}
	}
	reachEachOther(t, pods["a"], pods["b"], c)
	for i, outside := range cluster.OutsideIPs() {
		if got := probe(t, pods["b"], target("http", outside, 80))[0]; !strings.HasPrefix(got, cluster.NodeIPs("node2")[i].String()+" ") {
			t.Errorf("the outside saw %q, want node2", got)
		}
	}
}

// Nobody but the controller writes an identity, whatever the door, and a forged one is worth nothing.
func TestPodHostileAnnotation(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "victim", "node1"), server(ns, "thief", "node2"))
	ready(t, ns, 2)
	stolen := identity(t, ns, "victim")
	forged := server(ns, "forged", "node2")
	forged.Annotations = map[string]string{v1alpha1.IdentityAnnotation: stolen.Text()}
	if err := cluster.api.Create(t.Context(), forged); !forbidden(err) {
		t.Errorf("creating a pod with another's identity: %v, want Forbidden", err)
	}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.IdentityAnnotation, stolen.Text()))
	if err := cluster.api.Patch(t.Context(), server(ns, "thief", "node2"), patch); !forbidden(err) {
		t.Errorf("taking another's identity: %v, want Forbidden", err)
	}
}

// A pod that puts another's address on its interface sends into the void: its port knows only its own.
func TestPodSpoofing(t *testing.T) {
	ns := namespace(t, nil)
	thief := server(ns, "thief", "node2")
	thief.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
	create(t, server(ns, "victim", "node1"), server(ns, "witness", "node3"), thief)
	pods := ready(t, ns, 3)
	var targets []string
	for _, ip := range pods["witness"].IPs {
		targets = append(targets, target("http", ip, 80))
	}
	probe(t, pods["thief"], targets...)
	id := identity(t, ns, "victim")
	own := identity(t, ns, "thief")
	for i, ip := range id.IPs {
		for _, cmd := range [][]string{
			{"ip", "addr", "del", own.IPs[i].String(), "dev", "eth0"},
			{"ip", "addr", "add", ip.String(), "dev", "eth0"},
			{"ip", "route", "replace", "default", "via", id.Gateways[i].String()},
		} {
			if ip.Addr().Is6() {
				cmd = slices.Insert(cmd, 1, "-6")
			}
			if out, err := inPod(t.Context(), ns, "thief", cmd...); err != nil {
				t.Fatalf("%v: %s %v", cmd, out, err)
			}
		}
	}
	time.Sleep(2 * time.Second) // the kernel uses a new IPv6 address once nobody has objected to it
	out, err := inPod(t.Context(), ns, "thief", append([]string{"/bin/probe", "-timeout", "3s"}, targets...)...)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if f[0] == "ok" && !strings.HasPrefix(f[3], "fe80:") { // link-local addresses are everybody's own
			t.Errorf("under the victim's address: %s", line)
		}
	}
	probe(t, pods["victim"], targets...)
}

// An interface on another node that claims the port's name gets nothing: the port names its chassis and its pod's UID.
func TestPodForgedInterface(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "victim", "node1"), server(ns, "client", "node3"))
	pods := ready(t, ns, 2)
	id := identity(t, ns, "victim")
	name := string(ident.PodPort(ns, "victim", ident.DefaultNetwork))
	vsctl := func(args ...string) string {
		t.Helper()
		out, err := cluster.Exec(t.Context(), "node2", append([]string{"ovs-vsctl"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	vsctl("add-port", "br-int", "forged", "--", "set", "Interface", "forged", "type=internal",
		`external_ids:iface-id="`+name+`"`, `external_ids:iface-id-ver="`+id.PodUID+`"`)
	defer vsctl("--if-exists", "del-port", "br-int", "forged")
	time.Sleep(2 * time.Second) // what must not happen is given the time to happen
	if got := vsctl("--if-exists", "get", "Interface", "forged", "external_ids:ovn-installed"); got != "" && got != `""` {
		t.Errorf("the forged interface is installed: %s", got)
	}
	for _, ip := range pods["victim"].IPs {
		probe(t, pods["client"], target("http", ip, 80))
	}
	if got := bound(t, name); got != "node1" {
		t.Errorf("the victim's port is bound to %q, want node1", got)
	}
}

// bound is the chassis that holds a port, by the southbound database.
func bound(t *testing.T, port string) string {
	t.Helper()
	row, err := sbctl(t.Context(), "--bare", "--columns=chassis", "find", "Port_Binding", `logical_port="`+port+`"`)
	if err != nil {
		t.Fatal(err)
	}
	name, err := sbctl(t.Context(), "--bare", "--columns=name", "list", "Chassis", strings.TrimSpace(row))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(name)
}

// portForward fetches a page through kubectl port-forward.
func portForward(t *testing.T, ns string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(20*time.Second))
	defer cancel()
	cmd := exec.CommandContext(ctx, cluster.kubectl, "--kubeconfig", cluster.Kubeconfig(), "-n", ns, "port-forward", "pod/p", ":80")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n') // "Forwarding from 127.0.0.1:PORT -> 80"
	f := strings.Fields(line)
	if err != nil || len(f) < 3 {
		t.Fatalf("port-forward printed %q: %v", line, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f[2]+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), " p") {
		t.Errorf("port-forward: %q %v", body, err)
	}
}
