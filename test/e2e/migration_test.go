package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
)

// longestGap bounds the time without an answer in a migration, beyond QEMU's own stop: these tests run beside others on a small machine, and are no benchmark.
const longestGap = 2 * time.Second

// A VM moves and comes back under traffic: it keeps its addresses, its row and its connections, and what the network did is on record.
func TestMigrationThereAndBack(t *testing.T) {
	vm := bootVM(t, lab.VMOptions{Name: "there-and-back", Node: "node1"})
	from := peer(t, "node2")
	home := vm.node(t)
	for i, to := range []string{vm.another(t, "node2"), home} {
		var g *lab.Migration
		result := vm.watch(t, from, func() { g = vm.migrate(t, lab.MigrateOptions{To: to}) })
		if at := vm.node(t); at != to {
			t.Errorf("migration %d: the VM is on %s, want %s", i+1, at, to)
		}
		stop, err := g.QEMU(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("migration %d: QEMU had stopped the VM for %s", i+1, stop.Duration())
		for _, p := range result.Probes {
			if gap, limit := p.Gap.Length(), stop.Duration()+patience(longestGap); gap > limit {
				t.Errorf("migration %d: nothing came from %s for %s, want %s at most", i+1, p.Peer, gap, limit)
			}
		}
		vm.untouched(t)
		recorded(t, g)
	}
	consistent(t)
}

// recorded looks at the record of a migration that has succeeded.
func recorded(t *testing.T, g *lab.Migration) {
	t.Helper()
	pm := record(t, g)
	if pm.Status.Result != v1alpha1.MigrationSucceeded || pm.Status.Phase != "Committed" {
		t.Errorf("PortMigration %s: %s, %s: %s", pm.Name, pm.Status.Result, pm.Status.Phase, pm.Status.Message)
	}
	at := map[v1alpha1.StageName]time.Time{}
	for _, s := range pm.Status.Stages {
		at[s.Name] = s.Time.Time
	}
	for _, name := range []v1alpha1.StageName{v1alpha1.StageScheduled, v1alpha1.StagePrepared, v1alpha1.StageCommitted, v1alpha1.StageCompleted} {
		if at[name].IsZero() {
			t.Errorf("PortMigration %s lacks stage %s: %+v", pm.Name, name, pm.Status.Stages)
		}
	}
	t.Logf("migration %s: both chassis asked for %s after the target had a node", g, at[v1alpha1.StagePrepared].Sub(at[v1alpha1.StageScheduled]))
}

// The guest of a masquerade binding is behind its pod: QEMU's announcement does not leave it, and the agent announces the VM in its place.
func TestMigrationMasquerade(t *testing.T) {
	vm := bootVM(t, lab.VMOptions{Name: "masquerade", Node: "node1", Binding: guest.Masquerade})
	from := peer(t, "node2")
	vm.answers(t, from)
	var g *lab.Migration
	vm.watch(t, from, func() { g = vm.migrate(t, lab.MigrateOptions{To: "node3"}) })
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		pm, err := findRecord(ctx, g)
		if err == nil && (pm.Status.Result != v1alpha1.MigrationSucceeded || pm.Status.Target == nil || !pm.Status.Target.AnnouncedByAgent && pm.Status.Target.ActivatedBy != v1alpha1.ActivatedBySignal) {
			err = fmt.Errorf("PortMigration %s: %+v, target %+v: want the agent to have announced the VM, or to have opened its port before", pm.Name, pm.Status, pm.Status.Target)
		}
		return err
	})
	eventually(t, 2*time.Second, func(ctx context.Context) error {
		row, err := vm.portRow(ctx)
		if err == nil && (row.Options["requested-chassis"] != "node3" || row.Options["activation-strategy"] != "") {
			err = fmt.Errorf("the row has %v", row.Options)
		}
		return err
	})
}

// Two VMs with one hostname, and with long names that have dots, are two VMs.
func TestMigrationSameHostname(t *testing.T) {
	long := "a-vm-with.dots-in-it." + strings.Repeat("long", 12)
	one := bootVM(t, lab.VMOptions{Name: long + "-1", Node: "node1", Hostname: "same"})
	two := bootVM(t, lab.VMOptions{Name: long + "-2", Node: "node1", Hostname: "same"})
	from := peer(t, "node2")
	two.watch(t, from, func() { one.migrate(t, lab.MigrateOptions{To: "node3"}) })
	if at := two.node(t); at != "node1" {
		t.Errorf("the other VM is on %s", at)
	}
	one.untouched(t)
	two.untouched(t)
	if one.row == two.row || one.ips[0] == two.ips[0] {
		t.Errorf("both VMs have row %s and %v", one.row, one.ips)
	}
}

// A VM's Port outlives its instance: stopped and started again, the VM has the same addresses.
func TestMigrationPortOutlivesTheInstance(t *testing.T) {
	vm := bootVM(t, lab.VMOptions{Name: "outlives", Node: "node1"})
	ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Minute))
	defer cancel()
	if err := vm.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.AwaitStopped(ctx); err != nil {
		t.Fatal(err)
	}
	var port v1alpha1.Port
	eventually(t, 5*time.Second, func(ctx context.Context) error {
		if err := cluster.api.Get(ctx, vm.Key(), &port); err != nil {
			return err
		}
		if port.Status.Phase != v1alpha1.PortReserved || !meta.IsStatusConditionTrue(port.Status.Conditions, "Ready") {
			return fmt.Errorf("Port of a stopped VM: %+v", port.Status)
		}
		return nil
	})
	consistent(t)
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.AwaitAnswer(ctx); err != nil {
		t.Fatal(err)
	}
	vm.untouched(t)
}
