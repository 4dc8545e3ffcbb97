package kubevirt

import (
	"testing"

	kubevirtv1 "kubevirt.io/api/core/v1"
)

func TestStandIn(t *testing.T) {
	cfg := server(t)
	t.Run("There and back", func(t *testing.T) {
		e := newEnv(t, cfg)
		e.vmi(t, "vm1", nil)
		e.migrate(t, "vm1", "m1", nil)
		e.awaitPhase(t, "m1", kubevirtv1.MigrationSucceeded)
		e.settled(t, "vm1", "node2")
		e.migrate(t, "vm1", "m2", nil)
		e.awaitPhase(t, "m2", kubevirtv1.MigrationSucceeded)
		e.settled(t, "vm1", "node1")
	})
}
