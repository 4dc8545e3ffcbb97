package integration

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/godwit-cni/godwit/test/lab/source"
)

// The Prometheus operator whose resources dist/prometheus/operator.yaml is written for, and the hash of its module (go.sum's).
const (
	prometheusOperator    = "github.com/prometheus-operator/prometheus-operator@v0.93.0"
	prometheusOperatorSum = "h1:AohlYJT+En8TmNpAcEUJ3GsaJTAqfEBwHmGTVpRm/Io="
)

// prometheusOperatorCRDs is the directory of its CustomResourceDefinitions.
func prometheusOperatorCRDs(t *testing.T) string {
	t.Helper()
	get := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", prometheusOperator)
	get.Dir = t.TempDir() // outside of the checkout's module, which does not need it
	get.Stderr = t.Output()
	out, err := get.Output()
	var module struct{ Dir, Sum, Error string }
	if jerr := json.Unmarshal(out, &module); err != nil || jerr != nil {
		t.Fatalf("download %s: %v %v %s", prometheusOperator, err, jerr, module.Error)
	}
	if module.Sum != prometheusOperatorSum {
		t.Fatalf("%s is %s, want %s", prometheusOperator, module.Sum, prometheusOperatorSum)
	}
	return filepath.Join(module.Dir, "example", "prometheus-operator-crd")
}

// An API server that has the Prometheus operator's resources takes what is written for it, each field, and its PodMonitor names the pods and the port of all that have metrics.
func TestObserveOperator(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	dir := prometheusOperatorCRDs(t)
	crds := []string{filepath.Join(dir, "monitoring.coreos.com_podmonitors.yaml"), filepath.Join(dir, "monitoring.coreos.com_prometheusrules.yaml")}
	if _, err := envtest.InstallCRDs(e.rest, envtest.CRDInstallOptions{Paths: crds, ErrorIfPathMissing: true, MaxTime: patience}); err != nil {
		t.Fatal(err)
	}
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	e.apply(t, filepath.Join(top, "dist", "prometheus", "operator.yaml"))

	got := unstructured.Unstructured{}
	got.SetAPIVersion("monitoring.coreos.com/v1")
	got.SetKind("PodMonitor")
	if err := e.api.Get(t.Context(), key("godwit-system", "godwit"), &got); err != nil {
		t.Fatal(err)
	}
	var monitor struct {
		Spec struct {
			Selector            metav1.LabelSelector `json:"selector"`
			PodMetricsEndpoints []struct {
				Port        string `json:"port"`
				HonorLabels bool   `json:"honorLabels"`
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, &monitor); err != nil {
		t.Fatal(err)
	}
	chosen, err := metav1.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil || len(monitor.Spec.PodMetricsEndpoints) != 1 {
		t.Fatalf("%d endpoints, want 1 (%v)", len(monitor.Spec.PodMetricsEndpoints), err)
	}
	if !monitor.Spec.PodMetricsEndpoints[0].HonorLabels {
		t.Error("honorLabels is not set: series of VMs have the namespace of Godwit's pods, and the dashboards find none")
	}
	var scraped []string
	for _, file := range []string{"install.yaml", "ovn.yaml"} {
		for _, u := range manifest(t, filepath.Join(top, "yamls", file)) {
			pods := template(t, &u)
			for _, c := range pods.Spec.Containers {
				if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == monitor.Spec.PodMetricsEndpoints[0].Port }) && chosen.Matches(labels.Set(pods.Labels)) {
					scraped = append(scraped, c.Name)
				}
			}
		}
	}
	if diff := cmp.Diff([]string{"controller", "agent", "members"}, scraped); diff != "" {
		t.Errorf("containers that the PodMonitor scrapes (-want +got):\n%s", diff)
	}
}

// template of a workload's pods; without containers for what is none.
func template(t *testing.T, u *unstructured.Unstructured) (out corev1.PodTemplateSpec) {
	t.Helper()
	text, found, err := unstructured.NestedMap(u.Object, "spec", "template")
	if err != nil || !found {
		return out
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(text, &out); err != nil {
		t.Fatalf("%s %s: %v", u.GetKind(), u.GetName(), err)
	}
	return out
}
