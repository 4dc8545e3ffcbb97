package install

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/fixture"
)

// inventory lists what a node has of all that Godwit touches: links with their states and addresses, routes, the switches of the tunnels' link, its own tables of nftables, files.
const inventory = `
ip -br link | awk '{print $1, $2, $3}' | sort
ip -br address | sort
ip route | sort; ip -6 route | sort
for k in ipv4/conf/tun0/arp_ignore ipv6/conf/tun0/disable_ipv6; do echo "$k $(cat /proc/sys/net/$k)"; done
nft list tables | grep godwit
find /etc/cni/net.d /opt/cni/bin -type f | sort
find /etc/godwit /var/lib/godwit /run/godwit /run/openvswitch /run/ovn | sort
true`

func inventories(t *testing.T, l *lab.Lab) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, node := range l.NodeNames() {
		said, err := l.Exec(t.Context(), node, "sh", "-c", "exec 2>/dev/null"+strings.ReplaceAll(inventory, "tun0", boot.TunLink))
		if err != nil {
			t.Fatal(err)
		}
		out[node] = strings.Split(strings.TrimSpace(said), "\n")
	}
	return out
}

// uninstalled takes Godwit away as docs/install.md says: the nodes have what they had before.
func (r release) uninstalled(t *testing.T, before map[string][]string) {
	l := r.lab
	installed := inventories(t, l)
	for _, node := range l.NodeNames() {
		if len(installed[node]) < len(before[node])+10 {
			t.Errorf("%s with Godwit has hardly more than without: this test looks at the wrong things:\n%s", node, cmp.Diff(before[node], installed[node]))
		}
	}
	start := time.Now()
	kubectl := func(args ...string) {
		if _, err := fixture.Kubectl(t.Context(), l, args...); err != nil {
			t.Fatal(err)
		}
	}
	manifest := filepath.Join(r.top, "yamls/uninstall")
	kubectl("delete", "--timeout="+patience.String(), "-f", filepath.Join(r.top, "yamls/crds"))
	r.helm(t, "uninstall", "godwit", "--ignore-not-found")
	kubectl("apply", "-f", manifest)
	kubectl("-n", "godwit-uninstall", "rollout", "status", "--timeout="+patience.String(), "daemonset/godwit-uninstall")
	kubectl("delete", "--timeout="+patience.String(), "-f", manifest)
	t.Logf("Godwit was taken away in %s", time.Since(start).Round(time.Second))
	after := inventories(t, l)
	for _, node := range l.NodeNames() {
		if d := cmp.Diff(before[node], withoutDatabases(after[node])); d != "" {
			t.Errorf("%s is not what it was before the install (-before +after):\n%s", node, d)
		}
	}
}

// withoutDatabases leaves out the copies of OVN's databases, which are kept unless they are asked for.
func withoutDatabases(lines []string) (out []string) {
	for _, l := range lines {
		if l != "/var/lib/godwit" && !strings.HasPrefix(l, "/var/lib/godwit/ovn") {
			out = append(out, l)
		}
	}
	return out
}
