package binaries

import (
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/test/lab/source"
)

// TestProgramsAreStamped proves that what Ensure builds runs and says the pinned version.
func TestProgramsAreStamped(t *testing.T) {
	set, err := Ensure(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	version, err := kubernetesVersion(t.Context(), filepath.Join(top, "test", "kube"))
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"} {
		out, err := exec.CommandContext(t.Context(), set.Path(program), "--version").Output()
		if want := "Kubernetes " + version; err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s --version printed %q (%v), want %q", program, out, err, want)
		}
	}
	if out, err := exec.CommandContext(t.Context(), set.Path("etcd"), "--version").Output(); err != nil || !strings.HasPrefix(string(out), "etcd Version: 3.") {
		t.Errorf("etcd --version printed %q (%v)", out, err)
	}
	for _, plugin := range []string{"portmap", "bandwidth", "loopback", "bridge", "host-local"} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(set.CNI(), plugin))
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
		if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), `"1.0.0"`) {
			t.Errorf("%s VERSION printed %q (%v)", plugin, out, err)
		}
	}
}

// TestCoreDNSHasUpstreamsPlugins proves that what CoreDNS builds runs, and has the plugin that answers from the API server.
func TestCoreDNSHasUpstreamsPlugins(t *testing.T) {
	program, err := CoreDNS(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, "-plugins").CombinedOutput()
	if err != nil {
		t.Fatalf("%s -plugins: %v: %s", program, err, out)
	}
	plugins := strings.Fields(string(out))
	for _, plugin := range []string{"kubernetes", "ready", "cache", "forward", "route53"} {
		if !slices.Contains(plugins, plugin) {
			t.Errorf("CoreDNS has no plugin %s, only %v", plugin, plugins)
		}
	}
}
