package kernel

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestShape: what differs from run to run is not in an entry's shape, what a migration is about is.
func TestShape(t *testing.T) {
	names := map[netip.Addr]string{netip.MustParseAddr("10.244.0.3"): "vm", netip.MustParseAddr("fd00::4"): "peer"}
	got := shape([]string{
		"ipv4     2 tcp      6 431999 ESTABLISHED src=10.244.0.3 dst=10.1.2.3 sport=40000 dport=7 src=10.1.2.3 dst=10.244.0.3 sport=7 dport=40000 [ASSURED] mark=2 zone=5 use=1",
		"ipv4     2 tcp      6 300 ESTABLISHED src=10.244.0.3 dst=10.1.2.3 sport=51234 dport=7 src=10.1.2.3 dst=10.244.0.3 sport=7 dport=51234 [ASSURED] mark=2 zone=9 use=2",
		"ipv6     10 udp      17 29 src=fd00::4 dst=fd00::9 sport=7 dport=33000 [UNREPLIED] src=fd00::9 dst=fd00::4 sport=33000 dport=7 mark=0 zone=5 use=1",
		"ipv6     10 icmpv6   58 29 src=fd00::4 dst=fd00::9 type=128 code=0 id=7 src=fd00::9 dst=fd00::4 type=129 code=0 id=7 mark=0 use=1",
	}, names)
	want := []string{
		"ipv4 2 tcp 6 ESTABLISHED src=vm dst=10.1.2.3 sport=ephemeral dport=7 src=10.1.2.3 dst=vm sport=7 dport=ephemeral [ASSURED] mark=2",
		"ipv6 10 udp 17 src=peer dst=fd00::9 sport=7 dport=ephemeral [UNREPLIED] src=fd00::9 dst=peer sport=ephemeral dport=7 mark=0",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}
