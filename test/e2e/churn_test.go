package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// cycles is how many pods come and go in TestPodChurn: 12, or what CYCLES in the environment says.
func cycles(t *testing.T) int {
	t.Helper()
	s := os.Getenv("CYCLES")
	if s == "" {
		return 12
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("CYCLES=%q: want a number", s)
	}
	return n
}

// Pods that come and go leave nothing: API, NB, SB, Open vSwitch and kernel agree afterwards. CYCLES=200 for the whole of it.
func TestPodChurn(t *testing.T) {
	ns := namespace(t, nil)
	nodes := cluster.NodeNames()
	const atOnce = 4
	for done := 0; done < cycles(t); done += atOnce {
		for i := range atOnce {
			p := server(ns, fmt.Sprintf("p%d", i), nodes[(done+i)%len(nodes)])
			p.Spec.Containers[0].ReadinessProbe = nil
			create(t, p)
		}
		ready(t, ns, atOnce)
		gone := map[string]bool{}
		w, err := cluster.api.Watch(t.Context(), &corev1.PodList{}, client.InNamespace(ns))
		if err != nil {
			t.Fatal(err)
		}
		if err := cluster.api.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		for ev := range w.ResultChan() {
			if p, ok := ev.Object.(*corev1.Pod); ok && ev.Type == watch.Deleted {
				gone[p.Name] = true
			}
			if len(gone) == atOnce {
				break
			}
		}
		w.Stop()
	}
	consistent(t)
}
