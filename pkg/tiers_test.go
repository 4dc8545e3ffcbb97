package pkg

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/godwit-cni/godwit/"

// tiers orders the packages: 0 is pure, 1 adapts one outside thing each and imports tier 0, 2 are the loops, which import 0 and 1 and never each other.
// docs/architecture.md explains it. A package that is not listed fails the test.
var tiers = map[string]int{
	"pkg/api/v1alpha1": 0, "pkg/ident": 0, "pkg/ipam": 0, "pkg/topology": 0, "pkg/migration": 0, "pkg/policy": 0, "pkg/service": 0, "pkg/nad": 0, "pkg/pki": 0, "pkg/raft": 0, "pkg/errand": 0, "pkg/nbdb": 0, "pkg/sbdb": 0, "pkg/vswitchdb": 0,
	"pkg/ovn": 1, "pkg/ovs": 1, "pkg/netdev": 1, "pkg/wire": 1, "pkg/frame": 1, "pkg/gate": 1, "pkg/otlp": 1, "pkg/conntrack": 1, "pkg/peer": 1, "pkg/hypervisor": 1,
	"pkg/controller": 2, "pkg/agent": 2, "pkg/ovnpod": 2, "pkg/cni": 2, "pkg/kubectl": 2, "pkg/issuer": 2,
}

// pure lists what tier 0 may import besides the standard library and itself: types, and the models' generated support.
var pure = []string{"k8s.io/api", "k8s.io/apimachinery", "kubevirt.io/api", "github.com/ovn-kubernetes/libovsdb/model", "github.com/ovn-kubernetes/libovsdb/ovsdb"}

// forbidden are the standard packages that do I/O, which tier 0 does none of. (package net is allowed for its address types.)
var forbidden = []string{"os", "os/exec", "net/http", "log", "log/slog", "context", "math/rand", "math/rand/v2"}

type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

func TestImportTiers(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		if name == "pkg" {
			continue // this test
		}
		tier, ok := tiers[name]
		if !ok {
			t.Errorf("%s has no tier: add it to tiers", name)
			continue
		}
		seen++
		for _, imp := range p.Imports {
			if why := violation(tier, imp); why != "" {
				t.Errorf("%s (tier %d) imports %s: %s", name, tier, imp, why)
			}
		}
	}
	if seen != len(tiers) {
		t.Errorf("%d packages found, %d have a tier", seen, len(tiers))
	}
}

func violation(tier int, imp string) string {
	if ours, ok := strings.CutPrefix(imp, module); ok {
		switch other, known := tiers[ours]; {
		case !known:
			return "not a package of pkg"
		case tier == 0 && other != 0:
			return "tier 0 imports tier 0 only"
		case tier == 1 && other != 0:
			return "tier 1 imports tier 0 only"
		case tier == 2 && other == 2:
			return "loops do not import each other"
		}
		return ""
	}
	if tier != 0 {
		return ""
	}
	for _, f := range forbidden {
		if imp == f {
			return "tier 0 is pure"
		}
	}
	if !strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
		return "" // standard library
	}
	for _, p := range pure {
		if imp == p || strings.HasPrefix(imp, p+"/") {
			return ""
		}
	}
	return "tier 0 imports the standard library and API types only"
}
