package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/netdev"
)

// dropping is a host network with chains that drop.
type dropping struct {
	hostNetwork
	chains []string
	others []netdev.Chain
}

func (d dropping) Chains() ([]netdev.Chain, error) { return d.others, nil }

func (d dropping) ForwardDrops(string) ([]string, error) { return d.chains, nil }

func TestPreflight(t *testing.T) {
	cfg := Config{CNIConfDir: t.TempDir()}
	for _, name := range []string{"00-other.conflist", "05-godwit.conflist", "10-later.conf", "00-notes.txt", ".00-hidden.conf"} {
		if err := os.WriteFile(filepath.Join(cfg.CNIConfDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	problems, err := preflight(cfg, dropping{chains: []string{"ip filter FORWARD"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.check)
		if p.remedy == "" {
			t.Errorf("%s: no remedy", p.what)
		}
	}
	if d := cmp.Diff([]string{checkForward, checkConflist}, got); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
	for i, says := range []string{"ip filter FORWARD", "00-other.conflist"} {
		if !strings.Contains(problems[i].what, says) {
			t.Errorf("%q does not name %s", problems[i].what, says)
		}
	}
	for name, tc := range map[string]struct {
		chain netdev.Chain
		cfg   Config
		want  string
	}{
		"kube-proxy by iptables":      {netdev.Chain{Family: "ip", Table: "nat", Name: "KUBE-SERVICES"}, Config{Services: true}, "ip nat KUBE-SERVICES"},
		"kube-proxy by nftables":      {netdev.Chain{Family: "ip6", Table: "kube-proxy", Name: "services"}, Config{Services: true}, "ip6 kube-proxy services"},
		"kube-proxy serves":           {netdev.Chain{Family: "ip", Table: "nat", Name: "KUBE-SERVICES"}, Config{}, ""},
		"the kubelet's":               {netdev.Chain{Family: "ip", Table: "mangle", Name: "KUBE-KUBELET-CANARY"}, Config{Services: true}, ""},
		"the plugin portmap's":        {netdev.Chain{Family: "ip", Table: "nat", Name: "CNI-HOSTPORT-DNAT"}, Config{Services: true}, ""},
		"another network's leftovers": {netdev.Chain{Family: "ip", Table: "filter", Name: "cali-FORWARD"}, Config{}, "Calico has left rules"},
	} {
		problems := foreign([]netdev.Chain{tc.chain, tc.chain}, tc.cfg)
		if tc.want == "" && len(problems) == 0 {
			continue
		}
		if tc.want == "" || len(problems) != 1 || !strings.Contains(problems[0].what, tc.want) || problems[0].remedy == "" {
			t.Errorf("%s: %+v, want %q", name, problems, tc.want)
		}
	}
	clean := Config{CNIConfDir: filepath.Join(t.TempDir(), "not there yet")}
	if problems, err := preflight(clean, dropping{}); err != nil || len(problems) != 0 {
		t.Errorf("a clean node: %v %v", problems, err)
	}
}
