package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestProgramIsSmall: the plugin is started for every operation on every pod. It is a test of this package because go test asks go list anew when what is linked changes, and not when it runs elsewhere.
func TestProgramIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "github.com/godwit-cni/godwit/pkg/wire") {
		t.Fatalf("go list -deps says nothing of the plugin:\n%s", out)
	}
	for pkg := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		for _, heavy := range []string{"k8s.io/", "sigs.k8s.io/", "github.com/ovn-kubernetes/", "github.com/vishvananda/netlink/", "github.com/prometheus/"} {
			if strings.HasPrefix(pkg, heavy) {
				t.Errorf("cmd/godwit-cni links %s", pkg)
			}
		}
	}
}
