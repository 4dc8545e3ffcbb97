package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
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
		if err := cluster.api.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, func(ctx context.Context) error {
			var left corev1.PodList
			err := cluster.api.List(ctx, &left, client.InNamespace(ns))
			if err == nil && len(left.Items) > 0 {
				err = fmt.Errorf("%d pods are there still", len(left.Items))
			}
			return err
		})
	}
	consistent(t)
}
