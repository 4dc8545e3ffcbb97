package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// withSecond is pod a with eth0 and, by Multus, net1, both attached.
func withSecond(t *testing.T) (b *bench, second *wire.Request, result *wire.Result) {
	t.Helper()
	b = newBench(t)
	id, other := identityOf(uid, 7), identityOf(uid, 8)
	nic := v1alpha1.NICOf("net1", "shop/blue", other)
	id.NICs = []v1alpha1.NIC{nic}
	b.pods.Add(podA(map[string]string{v1alpha1.IdentityAnnotation: id.Text()}))
	second = addRequest()
	second.IfName, second.Conf = "net1", "blue" // the name of the definition's configuration
	if _, err := b.handle(t.Context(), addRequest()); err != nil {
		t.Fatal(err)
	}
	result, err := b.handle(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	return b, second, result
}

// Multus asks of each of a pod's interfaces by itself whether it is as it was made, and passes on what ADD answered of it.
func TestCheckOfASecondInterface(t *testing.T) {
	first, net1 := netdev.HostName("c1", "eth0"), netdev.HostName("c1", "net1")
	for _, c := range []struct {
		what   string
		change func(*bench, *wire.Request)
		want   string
	}{
		{"as it was made", func(*bench, *wire.Request) {}, ""},
		{"the first one is gone", func(b *bench, _ *wire.Request) { delete(b.node.ports, first); delete(b.node.links, first) }, ""},
		{"it is gone", func(b *bench, _ *wire.Request) { delete(b.node.ports, net1) }, "no attachment net1"},
		{"its link is gone", func(b *bench, _ *wire.Request) { delete(b.node.links, net1) }, "has no link " + net1},
		{"it is the first one's", func(b *bench, _ *wire.Request) {
			p := b.node.ports[net1]
			p.ID = "pod/ns/a/default"
			b.node.ports[net1] = p
		}, `has the OVN port (iface-id) "pod/ns/a/default", want "pod/ns/a/net1"`},
		{"the runtime has another address", func(_ *bench, r *wire.Request) { r.Previous.IPs = r.Previous.IPs[:1] }, "prevResult lacks address"},
		{"another configuration", func(_ *bench, r *wire.Request) { r.Conf = "green" }, `has the CNI configuration "blue", want "green"`},
	} {
		t.Run(c.what, func(t *testing.T) {
			b, req, result := withSecond(t)
			req.Command, req.Previous = wire.Check, result
			c.change(b, req)
			_, err := b.handle(t.Context(), req)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("CHECK: %v, want %q", err, c.want)
			}
		})
	}
}

// The runtime's list of what is valid may name a container's first interface alone: its others stay then. They go with a container that is in no list.
func TestGCOfSecondInterfaces(t *testing.T) {
	first, net1 := "port "+netdev.HostName("c1", "eth0"), "port "+netdev.HostName("c1", "net1")
	one, both := []wire.Attachment{{ContainerID: "c1", IfName: "eth0"}}, []wire.Attachment{{ContainerID: "c1", IfName: "eth0"}, {ContainerID: "c1", IfName: "net1"}}
	for _, c := range []struct {
		what, conf string
		valid      []wire.Attachment
		want       []string
	}{
		{"the first alone is listed", "blue", one, []string{first, net1}},
		{"both are", "blue", both, []string{first, net1}},
		{"only the second is, for its own configuration", "blue", both[1:], []string{first, net1}},
		{"none is, of the second's configuration", "blue", nil, []string{first}},
		{"none is, of the first's configuration", "godwit", nil, []string{net1}},
		{"another container is", "blue", []wire.Attachment{{ContainerID: "c2", IfName: "net1"}}, []string{first}},
	} {
		t.Run(c.what, func(t *testing.T) {
			b, _, _ := withSecond(t)
			if _, err := b.handle(t.Context(), &wire.Request{Version: wire.Version, Command: wire.GC, Conf: c.conf, Valid: c.valid, TimeoutMillis: 1000}); err != nil {
				t.Fatal(err)
			}
			got := slices.DeleteFunc(b.node.left(), func(s string) bool { return strings.HasPrefix(s, "link ") })
			want := slices.Sorted(slices.Values(c.want))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("ports after GC (-want +got):\n%s", diff)
			}
		})
	}
}

// A second interface of a pod that is gone is left over as the first is; one of a pod that is there, and does not select it any more, is its DEL's.
func TestLeftoversOfSecondInterfaces(t *testing.T) {
	b, _, _ := withSecond(t)
	for name, p := range b.node.ports {
		p.Installed = false // the row is gone
		b.node.ports[name] = p
	}
	pod := podA(nil)
	for _, p := range b.node.ports {
		if orphan(p, pod) {
			t.Errorf("%s is left over while its pod is there", p.ID)
		}
		if !orphan(p, nil) {
			t.Errorf("%s is not left over though its pod is gone", p.ID)
		}
	}
	if got := b.node.ports[netdev.HostName("c1", "net1")]; got.Owner != (ovs.Owner{Container: "c1", IfName: "net1", Netns: "/proc/self/ns/net", Pod: "ns/a", Conf: "blue"}) {
		t.Errorf("the second interface is owned by %+v", got.Owner)
	}
}
