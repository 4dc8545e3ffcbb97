package lab

import (
	"context"
	"fmt"
	"testing"
	"time"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// vmLab is a lab in which the reference plugin bridge wires the pods of each node: the stand-in for KubeVirt knows nothing of Godwit, and needs nothing of it.
func vmLab(ctx context.Context, t *testing.T, c Config) *Lab {
	t.Helper()
	l, err := Up(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	for i, node := range l.NodeNames() {
		conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,`+
			`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.250.%d.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, i+1)
		if _, err := l.Exec(ctx, node, "sh", "-c", `printf %s "$0" >/etc/cni/net.d/10-bridge.conflist`, conf); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.awaitNodes(ctx, nodesReady); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLabVM: a guest boots and answers, is migrated, survives a migration that fails late and one that is cancelled, is stopped and deleted.
func TestLabVM(t *testing.T) {
	c := config(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	vms, err := vmLab(ctx, t, c).VMs()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := vms.Create(ctx, VMOptions{Name: "vm1", Node: "node1"})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := vm.AwaitAnswer(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest answered after %s", time.Since(start).Round(time.Millisecond))
	migrateVM(ctx, t, vm, "node2")
	failed, err := vm.Migrate(ctx, MigrateOptions{Fault: kubevirt.FaultTargetLate})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := failed.Await(ctx); err != nil || m.Status.Phase != kubevirtv1.MigrationFailed {
		t.Fatalf("a migration whose target fails late: %+v, %v", m, err)
	}
	expectOn(ctx, t, vm, "node2")
	cancelVMMigration(ctx, t, vm)
	expectOn(ctx, t, vm, "node2")
	migrateVM(ctx, t, vm, "node1")
	if err := vm.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.AwaitStopped(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}

// migrateVM migrates a VM, and checks what QEMU says of it.
func migrateVM(ctx context.Context, t *testing.T, vm *VM, to string) {
	t.Helper()
	start := time.Now()
	g, err := vm.Migrate(ctx, MigrateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	expectOn(ctx, t, vm, to)
	stop, err := g.QEMU(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("migrated to %s in %s, QEMU's stop was %s", to, took.Round(time.Millisecond), stop.Duration())
	if d := stop.Duration(); d <= 0 || d > took || stop.Stopped.Before(start) { // how long it is is QEMU's own affair, and the machine's
		t.Errorf("QEMU stopped the guest for %s, from %s on", d, stop.Stopped)
	}
}

func cancelVMMigration(ctx context.Context, t *testing.T, vm *VM) {
	t.Helper()
	g, err := vm.Migrate(ctx, MigrateOptions{Hold: []kubevirt.Stage{kubevirt.StageSwitchover}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitPhase(ctx, kubevirtv1.MigrationRunning); err != nil {
		t.Fatal(err)
	}
	if err := g.Cancel(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.AwaitGone(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Await(ctx, "with an aborted migration", func(vmi *kubevirtv1.VirtualMachineInstance) bool {
		return vmi.Status.MigrationState.AbortStatus == kubevirtv1.MigrationAbortSucceeded
	}); err != nil {
		t.Fatal(err)
	}
}

// expectOn: the VM runs there, for its VMI, for its pod and for its launcher.
func expectOn(ctx context.Context, t *testing.T, vm *VM, node string) {
	t.Helper()
	pod, err := vm.Launcher(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if pod.Spec.NodeName != node {
		t.Errorf("VM %s is on %s, want %s", vm, pod.Spec.NodeName, node)
	}
	g, err := vm.Guest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s, err := g.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.QEMU != "running" {
		t.Errorf("the launcher of VM %s on %s says that its QEMU is %q", vm, node, s.QEMU)
	}
}
