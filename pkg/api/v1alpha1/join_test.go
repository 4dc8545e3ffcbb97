package v1alpha1

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func validJoin() Join {
	return Join{
		IPs:      []netip.Prefix{netip.MustParsePrefix("100.64.0.2/16"), netip.MustParsePrefix("fd98::2/64")},
		Clients:  []netip.Prefix{netip.MustParsePrefix("100.64.0.3/16"), netip.MustParsePrefix("fd98::3/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd98::1")}, MAC: MAC{0x0a, 0x67, 0x64, 0x40, 0, 2},
	}
}

// An annotation without clients is an older controller's.
func TestJoinRoundTrip(t *testing.T) {
	older := validJoin()
	older.Clients = nil
	for _, want := range []Join{validJoin(), older} {
		got, err := ParseJoin(want.Text())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want.Text(), got.Text()); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
	}
	if text := older.Text(); strings.Contains(text, "clients") {
		t.Errorf("%s: an agent of before would ask what clients are", text)
	}
}

func TestParseJoinRejects(t *testing.T) {
	for name, spoil := range map[string]func(*Join){
		"clients of one family":    func(j *Join) { j.Clients = j.Clients[:1] },
		"clients in another order": func(j *Join) { j.Clients[0], j.Clients[1] = j.Clients[1], j.Clients[0] },
		"clients elsewhere":        func(j *Join) { j.Clients[0] = netip.MustParsePrefix("100.65.0.3/16") },
		"clients are the first":    func(j *Join) { j.Clients[1] = j.IPs[1] },
		"clients are the gateway":  func(j *Join) { j.Clients[0] = netip.MustParsePrefix("100.64.0.1/16") },
		"clients are not given":    func(j *Join) { j.Clients[1] = netip.Prefix{} },
		"no address":               func(j *Join) { j.IPs, j.Gateways = nil, nil },
	} {
		j := validJoin()
		spoil(&j)
		if _, err := ParseJoin(j.Text()); err == nil || !strings.Contains(err.Error(), JoinAnnotation) {
			t.Errorf("%s: %v, want an error that names the annotation", name, err)
		}
	}
}
