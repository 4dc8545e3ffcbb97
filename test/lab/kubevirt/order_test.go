package kubevirt

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kubevirtv1 "kubevirt.io/api/core/v1"
)

var update = flag.Bool("update", false, "rewrite testdata/order.txt; compare it with recordings of KubeVirt before you commit it")

// line is what is read of a recording.
type line struct {
	Kind   string                    `json:"kind"`
	Type   string                    `json:"type"`
	Object unstructured.Unstructured `json:"object"`
}

// compareOrder compares which fields of which objects changed, in the order of the API server's revisions, with testdata/order.txt. What kubelets and the
// scheduler change is left out, for it comes when it comes.
func compareOrder(t *testing.T, recording []byte, namespace string) {
	t.Helper()
	got := strings.Join(order(t, recording, namespace), "\n") + "\n"
	golden := filepath.Join("testdata", "order.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func order(t *testing.T, recording []byte, namespace string) []string {
	t.Helper()
	var lines []line
	for text := range strings.Lines(string(recording)) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		if l.Object.GetNamespace() == namespace {
			lines = append(lines, l)
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return revision(t, a) - revision(t, b) })
	last, names := map[string]map[string]string{}, map[string]string{}
	var out []string
	for _, l := range lines {
		key := l.Kind + "/" + l.Object.GetName()
		if names[key] == "" {
			names[key] = fmt.Sprintf("%s%d", strings.TrimSuffix(l.Kind, "s"), len(names)+1)
		}
		now := map[string]string{}
		flatten(now, "", l.Object.Object)
		changes := changed(last[key], now)
		if l.Type != "MODIFIED" {
			changes = []string{l.Type}
		}
		last[key] = now
		if len(changes) > 0 {
			out = append(out, names[key]+" "+strings.Join(changes, " "))
		}
	}
	return out
}

func revision(t *testing.T, l line) int {
	t.Helper()
	n, err := strconv.Atoi(l.Object.GetResourceVersion())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// flatten makes a path of every value.
func flatten(into map[string]string, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			flatten(into, path+"."+k, x)
		}
	case []any:
		for i, x := range v {
			id := strconv.Itoa(i)
			if m, ok := x.(map[string]any); ok && m["type"] != nil {
				id = fmt.Sprint(m["type"])
			}
			flatten(into, path+"["+id+"]", x)
		}
	default:
		into[path] = fmt.Sprint(v)
	}
}

// ignored are fields that others write, that say when something was, or that are many and always written with one that is looked at.
var ignored = []string{
	".metadata.resourceVersion", ".metadata.generation", ".metadata.uid", ".status.activePods", ".status.qosClass", ".status.phaseTransitionTimestamps",
	".status.migrationState.migrationConfiguration", ".spec.nodeName", "[PodScheduled]", ".status.containerStatuses", ".lastTransitionTime", ".lastProbeTime",
	".status.runtimeUser", ".status.memory", ".status.launcherContainerImageVersion",
}

// late is what goes when the source's kubelet says that its launcher has ended, which may be before or after the migration's record is complete.
const late = ".metadata.labels." + kubevirtv1.MigrationTargetNodeNameLabel

// changed lists the paths whose values differ; phases and nodes with their new value.
func changed(old, now map[string]string) []string {
	var out []string
	for _, path := range slices.Sorted(maps.Keys(now)) {
		if old[path] == now[path] && old != nil || slices.ContainsFunc(ignored, func(i string) bool { return strings.Contains(path, i) }) {
			continue
		}
		switch value := now[path]; {
		case path == ".status.phase" && old["."+"kind"] == "Pod":
		case path == ".status.phase", strings.HasSuffix(path, "odeName"), strings.HasSuffix(path, ".status"):
			out = append(out, path+"="+value)
		default:
			out = append(out, path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(old)) {
		if _, still := now[path]; !still && path != late && !slices.ContainsFunc(ignored, func(i string) bool { return strings.Contains(path, i) }) {
			out = append(out, "-"+path)
		}
	}
	return out
}
