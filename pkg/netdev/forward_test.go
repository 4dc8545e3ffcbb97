package netdev

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What Docker leaves, in the form that iptables-nft gives it, and its remedy.
func TestForwardDrops(t *testing.T) {
	useNFT(t)
	h := Host{Netns: namespace(t).Path()}
	nft := func(script string) {
		t.Helper()
		err := h.do(func() error {
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(script)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Log(string(out))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(chains ...string) {
		t.Helper()
		got, err := h.ForwardDrops("ovn0")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(chains, got); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
	}
	want()
	nft(`
table ip filter {
	chain FORWARD { type filter hook forward priority 0; policy drop; }
	chain INPUT { type filter hook input priority 0; policy drop; }
}
table inet mine {
	chain f { type filter hook forward priority 0; policy accept; }
}`)
	want("ip filter FORWARD")
	nft(`insert rule ip filter FORWARD iifname "ovn0" accept`)
	want("ip filter FORWARD")
	nft(`insert rule ip filter FORWARD oifname "ovn0" accept`)
	want()
	nft(`
table ip6 filter {
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
		iifname "eth0" oifname "eth1" accept
	}
}`)
	want("ip6 filter FORWARD")
	chains, err := h.Chains()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"inet mine f", "ip filter FORWARD", "ip filter INPUT", "ip6 filter FORWARD"}, sorted(chains)); d != "" {
		t.Errorf("chains (-want +got)\n%s", d)
	}
	if err := h.RemoveTables(); err != nil {
		t.Error(err)
	}
	nft("table inet godwit {\n chain c { }\n}\ntable inet godwit-services {\n chain c { }\n}\ntable ip godwit { }")
	for range 2 {
		if err := h.RemoveTables(); err != nil {
			t.Error(err)
		}
	}
	if left, err := h.Chains(); err != nil || len(left) != len(chains) {
		t.Errorf("beside others' chains there are %v (%v)", left, err)
	}
}

func sorted(chains []Chain) (out []string) {
	for _, c := range chains {
		out = append(out, c.String())
	}
	slices.Sort(out)
	return out
}
