package pkg

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/godwit-cni/godwit/"

// tiers orders the packages: 0 is pure, 1 adapts one outside thing each and imports tier 0, 2 are the loops, which import 0 and 1 and never each other.
// docs/architecture.md explains it. A package that is not listed fails the test.
var tiers = map[string]int{
	"pkg/api/v1alpha1": 0, "pkg/ident": 0, "pkg/ipam": 0, "pkg/topology": 0, "pkg/migration": 0, "pkg/policy": 0, "pkg/service": 0, "pkg/nad": 0, "pkg/pki": 0, "pkg/raft": 0, "pkg/errand": 0, "pkg/lobby": 0, "pkg/nbdb": 0, "pkg/sbdb": 0, "pkg/vswitchdb": 0,
	"pkg/ovn": 1, "pkg/ovs": 1, "pkg/netdev": 1, "pkg/wire": 1, "pkg/frame": 1, "pkg/gate": 1, "pkg/otlp": 1, "pkg/conntrack": 1, "pkg/peer": 1, "pkg/hypervisor": 1,
	"pkg/controller": 2, "pkg/agent": 2, "pkg/ovnpod": 2, "pkg/cni": 2, "pkg/kubectl": 2, "pkg/issuer": 2,
}

// pure lists what tier 0 may import besides the standard library and itself: types, and the models' generated support.
var pure = []string{"k8s.io/api", "k8s.io/apimachinery", "kubevirt.io/api", "github.com/ovn-kubernetes/libovsdb/model", "github.com/ovn-kubernetes/libovsdb/ovsdb"}

// forbidden are the standard packages that do I/O, which tier 0 does none of. (package net is allowed for its address types.)
var forbidden = []string{"os", "os/exec", "net/http", "log", "log/slog", "context", "math/rand", "math/rand/v2"}

// TestImportTiers reads the files itself: go list would read them where go test does not see it, which then answers from its cache after a package has come.
func TestImportTiers(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == "." || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		name := "pkg/" + filepath.ToSlash(filepath.Dir(path))
		tier, ok := tiers[name]
		if !ok && !seen[name] {
			t.Errorf("%s has no tier: add it to tiers", name)
		}
		seen[name] = true
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil || !ok {
			return err
		}
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := violation(tier, imp); why != "" {
				t.Errorf("%s (tier %d) imports %s: %s", path, tier, imp, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range tiers {
		if !seen[name] {
			t.Errorf("%s has a tier and no files: take it from tiers", name)
		}
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
