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
	bound := map[string]map[string]any{}
	collect(t, bound, render(t, top, `--set-string=controllerNodeSelector.godwit\.dev/ovn-central=`))
	nodes, _, err := unstructured.NestedStringMap(bound["Deployment/godwit-system/godwit-controller"], "spec", "template", "spec", "nodeSelector")
	if value, ok := nodes["godwit.dev/ovn-central"]; err != nil || !ok || value != "" {
		t.Errorf("the controller runs on nodes %v (%v), want those with the label alone", nodes, err)
	}
	for key := range without {
		if strings.Contains(key, "ov") && strings.Contains(key, "Set/") && !strings.Contains(key, "agent") {
			t.Errorf("%s is there although OVN is somebody else's", key)
		}
	}
}

// TestInstallChartWithoutTLS: one value and the remotes decide, and contradictions are refused before anything is installed.
func TestInstallChartWithoutTLS(t *testing.T) {
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	plain := map[string]map[string]any{}
	collect(t, plain, render(t, top, "--set=tls.enabled=false,nbRemote=tcp:192.0.2.1:6641,sbRemote=tcp:192.0.2.1:6642"))
	settings, _, err := unstructured.NestedStringMap(plain["ConfigMap/godwit-system/godwit-config"], "data")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"GODWIT_SB_GATE": "", "GODWIT_OVN_ISSUER": "false", "GODWIT_OVN_TLS_DIR": "", "GODWIT_NB_REMOTE": "tcp:192.0.2.1:6641"} {
		if got, ok := settings[key]; !ok || got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	volumes, _, err := unstructured.NestedSlice(plain["StatefulSet/godwit-system/ovn-central"], "spec", "template", "spec", "volumes")
	if err != nil {
		t.Fatal(err)
	}
	secrets := 0
	for _, v := range volumes {
		if secret, ok := v.(map[string]any)["secret"].(map[string]any); ok {
			secrets++
			if secret["optional"] != true {
				t.Errorf("the databases wait for Secret %v, which nobody makes", secret["secretName"])
			}
		}
	}
	if secrets != 2 {
		t.Errorf("%d Secrets are mounted, want 2", secrets)
	}
	three := map[string]map[string]any{}
	collect(t, three, render(t, top, `--set-string=sbRemote=ssl:192.0.2.1:6642\,ssl:192.0.2.2:6642`))
	gate, _, err := unstructured.NestedString(three["ConfigMap/godwit-system/godwit-config"], "data", "GODWIT_SB_GATE")
	if want := "ssl:192.0.2.1:6645,ssl:192.0.2.2:6645"; err != nil || gate != want {
		t.Errorf("the gate is at %q (%v), want %s", gate, err, want)
	}
	if _, err := template(t, top, "--set=tls.enabled=false"); err == nil || !strings.Contains(err.Error(), "ssl:192.0.2.1:6641 does not begin with tcp:") {
		t.Errorf("ssl: without TLS: %v", err)
	}
}

// render is what helm makes of the chart.
func render(t *testing.T, top string, args ...string) string {
	t.Helper()
	out, err := template(t, top, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func template(t *testing.T, top string, args ...string) (string, error) {
	t.Helper()
	return helm(t, top, append([]string{"template", "godwit", filepath.Join(top, "dist/helm/godwit"), "--include-crds", "--kube-version=1.32.0"}, args...)...)
}

// helm is the real one, which make builds.
func helm(t *testing.T, top string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(top, "out/tools/helm"), args...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("helm %s: %w: %s: make out/tools/helm builds it", args[0], err, stderr.String())
	}
	return string(out), nil
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
