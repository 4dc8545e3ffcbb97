package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// Every node has its place on the join network and publishes an MTU that its underlay carries.
func TestNodeJoins(t *testing.T) {
	for _, name := range cluster.NodeNames() {
		var n corev1.Node
		if err := cluster.api.Get(t.Context(), types.NamespacedName{Name: name}, &n); err != nil {
			t.Fatal(err)
		}
		join, err := v1alpha1.ParseJoin(n.Annotations[v1alpha1.JoinAnnotation])
		if err != nil {
			t.Fatal(err)
		}
		if got := n.Annotations[v1alpha1.MTUAnnotation]; got == "" {
			t.Errorf("%s publishes no MTU", name)
		}
		out, err := cluster.Exec(t.Context(), name, "ip", "-o", "addr", "show", "dev", "ovn0")
		if err != nil {
			t.Fatal(err)
		}
		if len(join.Clients) != len(join.IPs) {
			t.Errorf("%s has %v for its own and %v for clients, want as many", name, join.IPs, join.Clients)
		}
		for _, ip := range slices.Concat(join.IPs, join.Clients) {
			if !strings.Contains(out, " "+ip.Addr().String()+"/") {
				t.Errorf("%s: ovn0 has no %s:\n%s", name, ip, out)
			}
		}
	}
}

// A node that is stopped and started, and one whose power is cut, serves pods again: those that were on it and new ones.
func TestNodeRestart(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"stop":  cluster.Node("node3").Stop,
		"crash": cluster.Node("node3").Crash,
	} {
		t.Run(name, func(t *testing.T) {
			ns := namespace(t, nil)
			create(t, server(ns, "before", "node3"), server(ns, "peer", "node1"))
			ready(t, ns, 2)
			if err := fail(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := cluster.Node("node3").Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			create(t, server(ns, "after", "node3"))
			eventually(t, 90*time.Second, func(ctx context.Context) error {
				out, err := kubectl(ctx, "-n", ns, "get", "pods", "--no-headers")
				if err == nil && strings.Count(out, "1/1") != 3 {
					err = fmt.Errorf("not ready:\n%s", out)
				}
				return err
			})
			var list []reach.Pod
			for _, p := range ready(t, ns, 3) {
				list = append(list, p)
			}
			eventually(t, 20*time.Second, func(ctx context.Context) error {
				m, err := reach.All(ctx, inPod, list)
				if err == nil && len(m.Failures) > 0 {
					err = fmt.Errorf("%v", m.Failures)
				}
				return err
			})
			consistent(t)
		})
	}
}

// The tunnels follow a node whose underlay address changes. Where the link is in the agent's bridge, it is the link that gets the address, and the agent moves it to the bridge in the place of the former.
func TestNodeAddressChange(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "a", "node1"), server(ns, "b", "node2"))
	pods := ready(t, ns, 2)
	old, err := encap(t.Context(), "node2")
	if err != nil {
		t.Fatal(err)
	}
	fresh := "172.30.1.112"
	mask := "24"
	if strings.Contains(old, ":") {
		fresh, mask = "fd00:172:30:1::112", "64"
	}
	dev := underlay(t, "node2", old)
	readdress := func(ctx context.Context, from, to string) error {
		script := fmt.Sprintf("ip addr del %s/%s dev %s && ip addr add %s/%s dev %s", from, mask, dev, to, mask, dev)
		if dev == agentsBridge {
			script = fmt.Sprintf("ip addr add %s/%s dev %s", to, mask, agentsLink)
		}
		_, err := cluster.Exec(ctx, "node2", "sh", "-c", script)
		return err
	}
	if err := readdress(t.Context(), old, fresh); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := readdress(context.WithoutCancel(t.Context()), fresh, old); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		if got, err := encap(ctx, "node2"); got != fresh {
			return fmt.Errorf("ovn-encap-ip is %s (%v), want %s", got, err, fresh) //nolint:errorlint // err may be nil
		}
		m, err := reach.All(ctx, inPod, []reach.Pod{pods["a"], pods["b"]})
		if err == nil && len(m.Failures) > 0 {
			err = fmt.Errorf("%v", m.Failures)
		}
		return err
	})
}

// agentsBridge is what GODWIT_UNDERLAY_BRIDGE is in yamls/.
const agentsBridge = "br-underlay"

// agentsLink is what the lab has for it.
const agentsLink = "eth1"

func encap(ctx context.Context, node string) (string, error) {
	out, err := cluster.Exec(ctx, node, "ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids:ovn-encap-ip")
	return strings.Trim(strings.TrimSpace(out), `"`), err
}

// underlay is the interface that has the address.
func underlay(t *testing.T, node, ip string) string {
	t.Helper()
	out, err := cluster.Exec(t.Context(), node, "ip", "-o", "addr", "show", "to", ip)
	f := strings.Fields(out)
	if err != nil || len(f) < 2 {
		t.Fatalf("%s: who has %s: %q %v", node, ip, out, err)
	}
	return f[1]
}
