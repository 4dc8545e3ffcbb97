package migration

import (
	"slices"
	"testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// migrating is a VM on n1 whose migration to n2 is under way; the target pod has a node.
var migrating = []string{
	"vmi phase=Running node=n1", "pod p1 node=n1 phase=Running", "vmim m1 phase=Scheduling", "pod p2 job=M1 node=n2", "record uid=M1 source=p1 target=p2",
}

func baselineWorld(t *testing.T, b Baseline, lines ...string) *world {
	t.Helper()
	w := newWorld()
	do(t, w, "vmi phase=Pending", "pod p1", "pod p1 node=n1")
	settled(t, w)
	w.env.Baseline, w.ovn.baseline = b, b
	do(t, w, migrating...)
	settled(t, w)
	do(t, w, lines...)
	settled(t, w)
	return w
}

func do(t *testing.T, w *world, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if err := w.do(line); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

func settled(t *testing.T, w *world) {
	t.Helper()
	if out, err := w.settle(); err != nil {
		t.Fatalf("%s%v", out, err)
	}
}

func TestBaselines(t *testing.T) {
	const ready, succeeded = "record ready=20", "vmim m1 phase=Succeeded"
	for name, c := range map[string]struct {
		baseline Baseline
		lines    []string
		// requested and strategy are what the row has in the end, target is the strategy of the target's permission, "none" if it has no permission.
		requested        string
		strategy, target v1alpha1.Activation
	}{
		"Godwit's own, prepared":     {"", nil, "n1,n2", v1alpha1.ActivationRARP, v1alpha1.ActivationRARP},
		"an unknown one is none":     {"other", nil, "n1,n2", v1alpha1.ActivationRARP, v1alpha1.ActivationRARP},
		"clone, prepared":            {BaselineClone, nil, "n1,n2", "", ""},
		"clone, ready":               {BaselineClone, []string{ready}, "n2", "", ""},
		"clone, failed":              {BaselineClone, []string{"vmim m1 phase=Failed"}, "n1", "", "none"},
		"flip, target scheduled":     {BaselineFlip, nil, "n1", "", v1alpha1.ActivationLater},
		"flip, ready is not the end": {BaselineFlip, []string{ready}, "n1", "", v1alpha1.ActivationLater},
		"flip, succeeded":            {BaselineFlip, []string{ready, succeeded}, "n2", "", ""},
		"flip, failed":               {BaselineFlip, []string{"vmim m1 phase=Failed"}, "n1", "", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			w := baselineWorld(t, c.baseline, c.lines...)
			row := w.ovn.rows[ident.DefaultNetwork]
			if got := row.Options[ident.OptionRequestedChassis]; got != c.requested {
				t.Errorf("requested-chassis %q: want %q", got, c.requested)
			}
			if got := row.Options[ident.OptionActivationStrategy]; got != string(c.strategy) {
				t.Errorf("activation-strategy %q: want %q", got, c.strategy)
			}
			attach := w.decide().Attach
			i := slices.IndexFunc(attach, func(a Attach) bool { return a.Pod == "p2" })
			got := v1alpha1.Activation("none")
			if i >= 0 {
				got = attach[i].Activation
			}
			if got != c.target {
				t.Errorf("the target may attach with strategy %q: want %q; %+v", got, c.target, attach)
			}
		})
	}
}
