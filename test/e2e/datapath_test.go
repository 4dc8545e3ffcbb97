package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// The userspace datapath reads checksums that the kernel would leave for later: the agent has them finished on both ends of a pod's link and on ovn0, and on the
// kernel's datapath leaves them alone (test/kernel runs there).
func TestPodOffload(t *testing.T) {
	const node = "node1"
	ns := namespace(t, nil)
	create(t, server(ns, "pod", node))
	p := ready(t, ns, 1)["pod"]
	vsctl := func(args ...string) string {
		out, err := cluster.Exec(t.Context(), node, append([]string{"ovs-vsctl"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	want := vsctl("get", "bridge", ident.IntegrationBridge, "datapath_type") != ovs.DatapathNetdev
	hostLink := vsctl("--bare", "--columns=name", "find", "interface", fmt.Sprintf("external_ids:iface-id=%q", ident.PodPort(ns, "pod", ident.DefaultNetwork)))
	for _, link := range []string{hostLink, ident.GatewayInterface} {
		out, err := cluster.Exec(t.Context(), node, "ethtool", "-k", link)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out, "tx-checksumming: on"); got != want {
			t.Errorf("link %s of %s: TX checksum offload is on: %t, want %t", link, node, got, want)
		}
	}
	path, err := cluster.PodNamespace(node, p.IPs[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (netdev.Host{Netns: path}).TXChecksum("eth0"); err != nil || got != want {
		t.Errorf("the pod's link: TX checksum offload is on: %t, %v, want %t", got, err, want)
	}
}
