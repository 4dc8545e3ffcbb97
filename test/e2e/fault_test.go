package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/reach"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// kill ends a node's processes of a name without a word; whatever supervises them starts them again.
func kill(ctx context.Context, node, name string) error {
	_, err := cluster.Exec(ctx, node, "sh", "-c", `kill -9 $(pidof "$0")`, name)
	return err
}

// leader is the node where the leading controller runs.
func leader(ctx context.Context) (string, error) {
	out, err := kubectl(ctx, "-n", "godwit-system", "get", "lease", "godwit-controller", "-o", "jsonpath={.spec.holderIdentity}")
	if err != nil {
		return "", err
	}
	node, _, _ := strings.Cut(out, "_") // HOSTNAME_UUID
	return node, nil
}

// partly is of a pod that has containers which are not ready.
var partly = regexp.MustCompile(`(?m)^\S+ +(\d+)/(\d+) `)

// settled waits until everything of Godwit's is Ready again.
func settled(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		out, err := kubectl(ctx, "-n", "godwit-system", "get", "pods", "--no-headers")
		for _, m := range partly.FindAllStringSubmatch(out, -1) {
			if err == nil && m[1] != m[2] {
				err = fmt.Errorf("not all ready:\n%s", out)
			}
		}
		return err
	})
}

// probing sends a packet every 10 ms from one pod to another, by each family, while f runs, and until packets that were sent after it are answered. It returns how many packets were sent up to the last that was
// answered, and how many of these were lost: what was sent after it may be under way, on a busy machine for longer than the next takes to be sent.
func probing(t *testing.T, from, to reach.Pod, f func()) (sent, lost int) {
	t.Helper()
	const after = 200 // packets, or a second
	fixture.Answer(t, podPlace(t, to))
	run, err := traffic.Begin(t.Context(), podPlace(t, from), traffic.Spec{
		Peers: to.IPs, Ports: fixture.Ports(), Probe: traffic.Probing{Interval: traffic.Duration{Duration: 10 * time.Millisecond}},
	})
	if err != nil {
		t.Fatal(err)
	}
	answered := func(want int) {
		t.Helper()
		eventually(t, settleTimeout, func(context.Context) error {
			if s := run.Status(); s.Replied < want {
				return fmt.Errorf("of %d packets from %s to %s %d are answered, want %d", s.Sent, from.Name, to.Name, s.Replied, want)
			}
			return nil
		})
	}
	answered(1)
	f()
	answered(run.Status().Sent + after)
	result, err := run.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range result.Probes {
		arrived := result.Probes[i].Arrived
		for len(arrived) > 0 && arrived[len(arrived)-1] == traffic.Never {
			arrived = arrived[:len(arrived)-1]
		}
		sent += len(arrived)
		for _, at := range arrived {
			if at == traffic.Never {
				lost++
			}
		}
	}
	return sent, lost
}

// No packet between two nodes is lost while the controllers, the agents and ovn-controller are killed and come back.
func TestFaultRestartsLoseNothing(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "a", "node1"), server(ns, "b", "node2"))
	pods := ready(t, ns, 2)
	for _, name := range []string{"godwit-controller", "godwit-agent", "ovn-controller"} {
		t.Run(name, func(t *testing.T) {
			sent, lost := probing(t, pods["a"], pods["b"], func() {
				for _, node := range []string{"node1", "node2"} {
					if err := kill(t.Context(), node, name); err != nil && name != "godwit-controller" { // which runs on two of three nodes
						t.Error(err)
					}
				}
				time.Sleep(2 * time.Second)
				settled(t)
			})
			t.Logf("%s: %d of %d packets lost", name, lost, sent)
			if lost > 0 || sent < 100 {
				t.Errorf("%s killed: %d of %d packets lost", name, lost, sent)
			}
		})
	}
	consistent(t)
}

// switchedAgain is within how long traffic must be back when ovs-vswitchd has died, on an idle machine.
const switchedAgain = 5 * time.Second

// Traffic is back within five seconds of the death of ovs-vswitchd, the node's own included.
func TestFaultVswitchd(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "a", "node1"), server(ns, "b", "node2"))
	pods := ready(t, ns, 2)
	if err := kill(t.Context(), "node2", "ovs-vswitchd"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	var targets []string
	for _, ip := range pods["b"].IPs {
		targets = append(targets, target("http", ip, 80))
	}
	for _, from := range []string{"pod", "node2"} {
		eventually(t, switchedAgain, func(ctx context.Context) error {
			var out string
			var err error
			if from == "pod" {
				out, err = inPod(ctx, ns, "a", append([]string{"/bin/probe", "-timeout", "500ms"}, targets...)...)
			} else {
				out, err = cluster.Exec(ctx, from, append([]string{"/proc/1/exe", "probe", "--timeout", "500ms"}, targets...)...)
			}
			if strings.Contains(out, "failed") || out == "" {
				return fmt.Errorf("from %s: %s %w", from, out, err)
			}
			return nil
		})
		took, limit := time.Since(start), patience(switchedAgain)
		t.Logf("from %s: back %.1f s after the death of ovs-vswitchd", from, took.Seconds())
		if took > limit {
			t.Errorf("from %s it took %s, want %s at most", from, took, limit)
		}
	}
	consistent(t)
}

// A pod that finds its Subnet full waits with an event, and runs when an address is freed.
func TestFaultSubnetFull(t *testing.T) {
	ns := namespace(t, map[string]string{"subnet": "tiny"})
	cidr := "10.78.0.0/30"
	if cluster.IPFamily() == "ipv6" {
		cidr = "fd00:78::/126"
	}
	s := &v1alpha1.Subnet{
		ObjectMeta: metav1.ObjectMeta{Name: "tiny"},
		Spec:       v1alpha1.SubnetSpec{CIDRs: []string{cidr}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"subnet": "tiny"}}},
	}
	if err := cluster.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.api.Delete(context.WithoutCancel(t.Context()), s) })
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		if err := cluster.api.Get(ctx, types.NamespacedName{Name: "tiny"}, s); err != nil || s.Status.AvailableIPs == 0 {
			return fmt.Errorf("Subnet tiny: %+v %w", s.Status, err)
		}
		return nil
	})
	room := int(s.Status.AvailableIPs)
	for i := range room {
		create(t, server(ns, fmt.Sprint("p", i), "node1"))
	}
	ready(t, ns, room)
	create(t, server(ns, "late", "node2"))
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		out, err := kubectl(ctx, "-n", ns, "describe", "pod", "late")
		if err == nil && !strings.Contains(out, "SubnetFull") {
			err = fmt.Errorf("no event SubnetFull:\n%s", out)
		}
		return err
	})
	if _, err := kubectl(t.Context(), "-n", ns, "delete", "pod", "p0", "--wait=false"); err != nil {
		t.Fatal(err)
	}
	until(t, &corev1.PodList{}, ns, func(p *corev1.Pod) bool { return p.Name == "late" && isReady(p) })
}

// What is wrong with a Subnet is said by kubectl apply, in words that help.
func TestFaultSubnets(t *testing.T) {
	for spec, says := range map[string]string{
		`{cidrs: [10.9.0.1/24]}`:                               "network addresses",
		`{cidrs: [10.9.0.0/24, 10.8.0.0/24]}`:                  "different families",
		`{cidrs: [10.9.0.0/24], gateways: [10.8.0.1]}`:         "every gateway must be an address in one of cidrs",
		`{cidrs: [10.9.0.0/24], gateways: ["not an address"]}`: "every gateway must be an address in one of cidrs",
		`{cidrs: [10.9.0.0/24], excludeIPs: [10.8.0.1]}`:       "excludeIPs",
		`{cidrs: [10.9.0.0/24], mtu: 9}`:                       "1280",
		`{cidrs: [10.9.0.0/24], namespaceSelektor: {}}`:        "unknown field",
	} {
		file := filepath.Join(t.TempDir(), "subnet.yaml")
		manifest := "apiVersion: godwit.dev/v1alpha1\nkind: Subnet\nmetadata: {name: bad}\nspec: " + spec + "\n"
		if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := kubectl(t.Context(), "apply", "-f", file); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it to say %q", spec, err, says)
		}
	}
}

// The plugin by hand: garbage, what is gone, and everything twice.
func TestFaultCNI(t *testing.T) {
	run := func(command, container, netns, stdin string) (string, error) {
		script := `printf %s "$0" | CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=$3 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
			CNI_ARGS="K8S_POD_NAMESPACE=none;K8S_POD_NAME=none;K8S_POD_UID=6a5b4c3d-0000-4000-8000-000000000000" /opt/cni/bin/godwit; true`
		return cluster.Exec(t.Context(), "node1", "sh", "-c", script, stdin, command, container, netns)
	}
	conf := `{"cniVersion":"1.1.0","name":"godwit","type":"godwit"}`
	for name, c := range map[string]struct{ command, netns, stdin, says string }{
		"garbage":          {"ADD", "/run/netns/x", "garbage", "code"},
		"empty":            {"ADD", "/run/netns/x", "", "code"},
		"netns gone":       {"ADD", "/run/netns/gone", conf, "/run/netns/gone"},
		"unknown version":  {"ADD", "/run/netns/x", `{"cniVersion":"9.9.9","name":"godwit","type":"godwit"}`, "incompatible"},
		"the node's netns": {"ADD", "/proc/1/ns/net", conf, "node's own"},
	} {
		out, err := run(c.command, "hand", c.netns, c.stdin)
		if err != nil || !strings.Contains(out, c.says) || !strings.Contains(out, `"code"`) {
			t.Errorf("%s: %q %v, want a CNI error that says %q", name, out, err, c.says)
		}
	}
	for _, again := range []string{"first", "second"} {
		if out, err := run("DEL", "unknown", "/run/netns/gone", conf); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("%s DEL of the unknown: %q %v", again, out, err)
		}
	}
	if out, err := run("VERSION", "", "", `{"cniVersion":"1.1.0"}`); err != nil || !strings.Contains(out, `"1.1.0"`) {
		t.Errorf("VERSION: %q %v", out, err)
	}
	if out, err := run("STATUS", "", "", conf); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("STATUS: %q %v", out, err)
	}
	consistent(t)
}

// The southbound database cannot be reached while a pod is attached: the error says so within its deadline, nothing leaks, and the pod runs when it can be.
func TestFaultSouthbound(t *testing.T) {
	ns := namespace(t, nil)
	block := func(ctx context.Context, rule string) error {
		_, err := cluster.Exec(ctx, "node1", "nft", rule)
		return err
	}
	if err := block(t.Context(), "table inet fault { chain in { type filter hook input priority 0; tcp sport 6642 drop; }; chain out { type filter hook output priority 0; tcp dport 6642 drop; }; }"); err != nil {
		t.Fatal(err)
	}
	lifted := false
	lift := func(ctx context.Context) {
		if !lifted {
			lifted = true
			if err := block(ctx, "delete table inet fault"); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(func() { lift(context.WithoutCancel(t.Context())) })
	create(t, server(ns, "p", "node1"))
	eventually(t, 75*time.Second, func(ctx context.Context) error {
		out, err := kubectl(ctx, "-n", ns, "get", "events", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "is ovn-controller running and connected to") {
			err = fmt.Errorf("no event that names the cause: %s", out)
		}
		return err
	})
	lift(t.Context())
	ready(t, ns, 1)
	consistent(t)
}

// ledAgain is within how long a pod must run that is made as the leading controller dies, on an idle machine.
const ledAgain = 15 * time.Second

// When the leading controller dies without a word, the other takes over and pods are served on.
func TestFaultLeader(t *testing.T) {
	ns := namespace(t, nil)
	was, err := leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := kill(t.Context(), was, "godwit-controller"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	create(t, server(ns, "p", "node3"))
	ready(t, ns, 1)
	t.Logf("a pod created at the leader's death was Ready after %.1f s", time.Since(start).Seconds())
	if took, limit := time.Since(start), patience(ledAgain); took > limit {
		t.Errorf("it took %s, want %s at most", took, limit)
	}
	settled(t)
}

// Pods come and go while controllers and agents are killed at random moments: nothing is left behind, nobody is forgotten. CYCLES=200 for the whole of it;
// the seed is printed.
func TestFaultKilledAtRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ns := namespace(t, nil)
	nodes := cluster.NodeNames()
	const atOnce = 6
	for done := 0; done < cycles(t); done += atOnce {
		for i := range atOnce {
			p := server(ns, fmt.Sprintf("p%d-%d", done, i), nodes[i%len(nodes)])
			p.Spec.Containers[0].ReadinessProbe = nil
			create(t, p)
		}
		time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
		victim := []string{"godwit-agent", "godwit-controller"}[random.IntN(2)]
		if err := kill(t.Context(), nodes[random.IntN(len(nodes))], victim); err != nil && victim == "godwit-agent" {
			t.Logf("kill: %v", err) // it may be down from the last time
		}
		seen := map[string]bool{}
		until(t, &corev1.PodList{}, ns, func(p *corev1.Pod) bool {
			if isReady(p) {
				seen[p.Name] = true
			}
			return len(seen) == atOnce
		})
		if _, err := kubectl(t.Context(), "-n", ns, "delete", "pods", "--all", "--now", "--timeout="+patience(90*time.Second).String()); err != nil {
			t.Fatal(err)
		}
	}
	settled(t)
	consistent(t)
}

// agentLog is the log of a node's agent since its last start.
func agentLog(ctx context.Context, node string) (string, error) {
	name, err := kubectl(ctx, "-n", "godwit-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName="+node,
		"-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return "", err
	}
	return kubectl(ctx, "-n", "godwit-system", "logs", name)
}

// What other software left on a node is named at the agent's start, with its remedy; the remedy helps.
func TestFaultPreflight(t *testing.T) {
	onNode := func(script string) {
		t.Helper()
		if out, err := cluster.Exec(t.Context(), "node2", "sh", "-c", script); err != nil {
			t.Fatalf("%s: %s %v", script, out, err)
		}
	}
	restarted := func(want ...string) {
		t.Helper()
		eventually(t, settleTimeout, func(ctx context.Context) error { return kill(ctx, "node2", "godwit-agent") })
		eventually(t, 2*time.Minute, func(ctx context.Context) error {
			out, err := agentLog(ctx, "node2")
			if err == nil && !strings.Contains(out, "starting") {
				err = fmt.Errorf("the agent has not started:\n%s", out)
			}
			for _, w := range want {
				if err == nil && !strings.Contains(out, w) {
					err = fmt.Errorf("no word of %q in\n%s", w, out)
				}
			}
			if err == nil && len(want) == 0 && strings.Contains(out, "pre-flight") {
				err = fmt.Errorf("still:\n%s", out)
			}
			return err
		})
		settled(t)
	}
	ns := namespace(t, nil)
	create(t, server(ns, "p", "node2"))
	p := ready(t, ns, 1)["p"]
	onNode("iptables -P FORWARD DROP && echo '{}' > /etc/cni/net.d/00-other.conflist")
	t.Cleanup(func() {
		_, err := cluster.Exec(context.WithoutCancel(t.Context()), "node2", "sh", "-c", "iptables -P FORWARD ACCEPT; iptables -F FORWARD; rm -f /etc/cni/net.d/00-other.conflist")
		if err != nil {
			t.Error(err)
		}
	})
	restarted("00-other.conflist", "chain ip filter FORWARD drops")
	onNode("iptables -I FORWARD -i ovn0 -j ACCEPT; iptables -I FORWARD -o ovn0 -j ACCEPT; rm /etc/cni/net.d/00-other.conflist")
	restarted()
	if outside := cluster.OutsideIPs()[0]; outside.Is4() {
		probe(t, p, target("http", outside, 80))
	}
}

// Strict reverse path filtering, on every link of the node, takes nothing away.
func TestFaultStrictReversePath(t *testing.T) {
	set := func(ctx context.Context, value string) error {
		_, err := cluster.Exec(ctx, "node1", "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo "+value+" >$f; done")
		return err
	}
	if err := set(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set(context.WithoutCancel(t.Context()), "0"); err != nil {
			t.Error(err)
		}
	})
	ns := namespace(t, nil)
	p := server(ns, "p", "node1")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8089}}
	create(t, p, server(ns, "q", "node2"))
	pods := ready(t, ns, 2)
	for i, ip := range pods["p"].IPs {
		probe(t, pods["q"], target("http", ip, 80))
		probe(t, pods["p"], target("http", pods["q"].IPs[i], 80), target("http", cluster.OutsideIPs()[i], 80))
		machineProbe(t, "node1", target("http", ip, 80))
		machineProbe(t, "outside", target("http", cluster.NodeIPs("node1")[i], 8089))
	}
}
