package reach

import (
	"context"
	"net/netip"
	"strings"
	"testing"
)

func TestMatrix(t *testing.T) {
	at := netip.MustParseAddr
	pods := []Pod{
		{Name: "a", Node: "n1", IPs: []netip.Addr{at("10.0.0.1"), at("fd00::1")}},
		{Name: "b", Node: "n2", IPs: []netip.Addr{at("10.0.0.2"), at("fd00::2")}},
	}
	answers := map[string]string{
		"a": "ok http://10.0.0.1:80/ 1ms 10.0.0.1 a\nok http://[fd00::1]:80/ 1ms fd00::1 a\nok http://10.0.0.2:80/ 1ms 10.0.0.1 b\nfailed http://[fd00::2]:80/ 5s timeout\n",
		"b": "ok http://10.0.0.1:80/ 1ms 100.64.0.2 a\nok http://[fd00::1]:80/ 1ms fd00::2 a\nok http://10.0.0.2:80/ 1ms 10.0.0.2 b\nok http://[fd00::2]:80/ 1ms fd00::2 b\n",
	}
	m, err := All(t.Context(), func(_ context.Context, _, pod string, _ ...string) (string, error) { return answers[pod], nil }, pods)
	if err != nil {
		t.Fatal(err)
	}
	if m.Asked() != 8 || len(m.Failures) != 2 {
		t.Fatalf("%d asked, failures %v; want 8, 2", m.Asked(), m.Failures)
	}
	for i, want := range []string{"a (n1) does not reach b (n2) at fd00::2: failed", "b (n2) does not reach a (n1) at 10.0.0.1: it is seen as 100.64.0.2"} {
		if !strings.HasPrefix(m.Failures[i].String(), want) {
			t.Errorf("failure %d is %q, want %q", i, m.Failures[i], want)
		}
	}
	var b strings.Builder
	if err := m.Print(&b); err != nil {
		t.Fatal(err)
	}
	want := "from \\ to   n1 (1 pods)          n2 (1 pods)\n" +
		"n1          IPv4 1/1, IPv6 1/1   IPv4 1/1, IPv6 0/1\n" +
		"n2          IPv4 0/1, IPv6 1/1   IPv4 1/1, IPv6 1/1\n"
	if b.String() != want {
		t.Errorf("table is\n%swant\n%s", b.String(), want)
	}
}

func TestMissingLineIsAnError(t *testing.T) {
	pods := []Pod{{Name: "a", Node: "n1", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}
	if _, err := All(t.Context(), func(context.Context, string, string, ...string) (string, error) { return "", nil }, pods); err == nil {
		t.Error("a probe that printed nothing was accepted")
	}
}
