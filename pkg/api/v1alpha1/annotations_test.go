package v1alpha1

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func valid() Identity {
	return Identity{
		PodUID: "u", Subnet: "default", MTU: 1400, MAC: MAC{0x0a, 0x67, 0, 0, 0, 1},
		IPs:      []netip.Prefix{netip.MustParsePrefix("10.0.0.5/16"), netip.MustParsePrefix("fd00::5/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
	}
}

func TestIdentityRoundTrip(t *testing.T) {
	want := valid()
	got, err := ParseIdentity(want.Text())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.Text(), got.Text()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestParseIdentityRejects(t *testing.T) {
	for name, break_ := range map[string]func(*Identity){
		"no UID":                func(i *Identity) { i.PodUID = "" },
		"no address":            func(i *Identity) { i.IPs, i.Gateways = nil, nil },
		"one family twice":      func(i *Identity) { i.IPs[1] = i.IPs[0]; i.Gateways[1] = i.Gateways[0] },
		"gateway missing":       func(i *Identity) { i.Gateways = i.Gateways[:1] },
		"gateway elsewhere":     func(i *Identity) { i.Gateways[0] = netip.MustParseAddr("10.1.0.1") },
		"MTU of nothing":        func(i *Identity) { i.MTU = 0 },
		"MTU too large":         func(i *Identity) { i.MTU = 70000 },
		"multicast MAC":         func(i *Identity) { i.MAC = MAC{1, 0, 0, 0, 0, 1} },
		"no MAC":                func(i *Identity) { i.MAC = nil },
		"gateway is not given":  func(i *Identity) { i.Gateways[1] = netip.Addr{} },
		"address is not given":  func(i *Identity) { i.IPs[1] = netip.Prefix{} },
		"three addresses given": func(i *Identity) { i.IPs = append(i.IPs, i.IPs[0]); i.Gateways = append(i.Gateways, i.Gateways[0]) },
	} {
		id := valid()
		break_(&id)
		if _, err := ParseIdentity(id.Text()); err == nil || !strings.Contains(err.Error(), IdentityAnnotation) {
			t.Errorf("%s: %v, want an error that names the annotation", name, err)
		}
	}
	for _, text := range []string{"", "{", "[]", "null", `{"mac":"00:00:00:00:00:00:00:01"}`} {
		if _, err := ParseIdentity(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

// The keys stand in the manifests too.
func TestAdmissionPolicyCoversAnnotations(t *testing.T) {
	b, err := os.ReadFile("../../../yamls/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{IdentityAnnotation, JoinAnnotation, MTUAnnotation} {
		if !strings.Contains(string(b), `"`+key+`"`) {
			t.Errorf("no admission policy names %s", key)
		}
	}
}

// The bounds stand in the Subnet's definition too, where a constant cannot be named.
func TestMTUBounds(t *testing.T) {
	b, err := os.ReadFile("../../../yamls/crds/godwit.dev_subnets.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, mtu, found := strings.Cut(string(b), "              mtu:\n")
	if want := fmt.Sprintf("maximum: %d\n                minimum: %d\n", MaxMTU, MinMTU); !found || !strings.Contains(mtu, want) {
		t.Errorf("spec.mtu of the Subnet's definition has other bounds than %d and %d: `make generate`", MinMTU, MaxMTU)
	}
	for mtu, want := range map[int]bool{0: false, MinMTU - 1: false, MinMTU: true, MaxMTU: true, MaxMTU + 1: false} {
		if MTUInBounds(mtu) != want {
			t.Errorf("MTU %d: in bounds is %v, want %v", mtu, !want, want)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(valid().Text())
	f.Add(`{"ips":["::/0"],"gateways":["::"],"mac":"00:00:00:00:00:00"}`)
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseIdentity(s)
		if err != nil {
			return
		}
		if again, err := ParseIdentity(id.Text()); err != nil || again.Text() != id.Text() {
			t.Errorf("%s is read back as %s: %v", id.Text(), again.Text(), err)
		}
	})
}
