package install

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// TestInstallChart: what helm makes of the chart without values of the user's is what yamls/ has, object by object.
func TestInstallChart(t *testing.T) {
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{}
	for _, pattern := range []string{"yamls/crds/*.yaml", "yamls/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no manifests %s: %v", pattern, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			collect(t, want, string(text))
		}
	}
	got := map[string]map[string]any{}
	collect(t, got, render(t, top))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("yamls/ (-) and the chart (+) differ:\n%s", diff)
	}
	without := map[string]map[string]any{}
	collect(t, without, render(t, top, "--set=ovn.enabled=false,controllerReplicas=1"))
	if n, ok := without["Deployment/godwit-system/godwit-controller"]["spec"].(map[string]any); !ok || fmt.Sprint(n["replicas"]) != "1" {
		t.Errorf("a value does not arrive: %v", n["replicas"])
	}
	for key := range without {
		if strings.Contains(key, "ov") && strings.Contains(key, "Set/") && !strings.Contains(key, "agent") {
			t.Errorf("%s is there although OVN is somebody else's", key)
		}
	}
}

// render runs the real helm, which make builds.
func render(t *testing.T, top string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(top, "out/tools/helm"), append([]string{"template", "godwit", filepath.Join(top, "dist/helm/godwit"), "--include-crds", "--kube-version=1.32.0"}, args...)...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v: %s: make out/tools/helm builds it", err, stderr.String())
	}
	return string(out)
}

func collect(t *testing.T, into map[string]map[string]any, text string) {
	t.Helper()
	objects, err := lab.ReadObjects(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		key := key(o)
		if into[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		into[key] = o.Object
	}
}

func key(o *unstructured.Unstructured) string {
	return o.GetKind() + "/" + o.GetNamespace() + "/" + o.GetName()
}
