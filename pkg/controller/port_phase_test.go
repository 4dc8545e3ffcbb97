package controller

import (
	"testing"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func TestPortPhase(t *testing.T) {
	for name, c := range map[string]struct {
		w      whereabouts
		before v1alpha1.PortPhase
		want   v1alpha1.PortPhase
		node   string
	}{
		"reserved":               {whereabouts{requested: "godwit-none"}, "", v1alpha1.PortReserved, ""},
		"its VM starts":          {whereabouts{requested: "godwit-none", inUse: true}, "", v1alpha1.PortBound, ""},
		"asked for":              {whereabouts{requested: "n1", inUse: true}, v1alpha1.PortBound, v1alpha1.PortBound, ""},
		"claimed":                {whereabouts{requested: "n1", chassis: "n1", inUse: true}, v1alpha1.PortBound, v1alpha1.PortAttached, "n1"},
		"moves":                  {whereabouts{requested: "n1,n2", chassis: "n1", inUse: true}, v1alpha1.PortAttached, v1alpha1.PortMigrating, "n1"},
		"committed, not claimed": {whereabouts{requested: "n2", chassis: "n1", inUse: true}, v1alpha1.PortMigrating, v1alpha1.PortAttached, "n2"},
		"stopped":                {whereabouts{requested: "godwit-none"}, v1alpha1.PortAttached, v1alpha1.PortReserved, ""},
	} {
		if phase, node := c.w.phase(c.before); phase != c.want || node != c.node {
			t.Errorf("%s: %s on %q, want %s on %q", name, phase, node, c.want, c.node)
		}
	}
}
