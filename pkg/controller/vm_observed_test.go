package controller

import (
	"testing"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/migration"
)

// Whoever may annotate a VMI must not be able to make its migrations worse, but for a benchmark.
func TestBaselineNeedsTheFlag(t *testing.T) {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	vmi.Annotations = map[string]string{migration.AnnotationBaseline: string(migration.BaselineClone)}
	off, on := &vmReconciler{baselines: Defaults().Baselines}, &vmReconciler{baselines: true}
	for name, c := range map[string]struct {
		r    *vmReconciler
		vmi  *kubevirtv1.VirtualMachineInstance
		want migration.Baseline
	}{
		"without the flag":       {off, vmi, ""},
		"with it":                {on, vmi, migration.BaselineClone},
		"without the annotation": {on, &kubevirtv1.VirtualMachineInstance{}, ""},
		"without a VMI":          {on, nil, ""},
	} {
		if got := c.r.baseline(c.vmi); got != c.want {
			t.Errorf("%s: baseline %q, want %q", name, got, c.want)
		}
	}
}
