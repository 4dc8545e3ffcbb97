package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/reach"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	drainedNode = "node1"
	// drainTimeout is for three VMs, two of which move at a time: kubectl asks again every five seconds.
	drainTimeout = 3 * time.Minute
	// drainLabel is on what the tests drain; the node has other tests' VMs.
	drainLabel = "drain"
)

// A node with three VMs is drained by the real kubectl. First the drain is given up in the middle and the node uncordoned, which leaves all as it was; then it goes on to
// its end: the VMs have moved, with their addresses, MACs, rows and connections, and none of their launchers is left on the node.
func TestLifecycleDrain(t *testing.T) {
	vms := bootAll(t, "drained", 3)
	from := peer(t, "node2")
	t.Cleanup(func() {
		if _, err := kubectl(context.WithoutCancel(t.Context()), "uncordon", drainedNode); err != nil {
			t.Error(err)
		}
	})
	had := map[string]string{}
	for _, vm := range vms {
		had[vm.Name] = vm.addresses(t)
	}
	held := holdAll(t, from, vms)

	planned(t, vms)
	giveUp(t, vms)
	for _, vm := range vms {
		if at := vm.node(t); at != drainedNode {
			t.Errorf("the drain was given up, and VM %s is on %s", vm, at)
		}
	}
	left(t, vms, v1alpha1.MigrationFailed)
	consistent(t)

	d := startDrain(t)
	if err := d.wait(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(d.out.String(), "Eviction triggered evacuation"); n < len(vms) {
		t.Errorf("kubectl drain was told of %d evacuations, want one of each VM:\n%s", n, &d.out)
	}
	left(t, vms, v1alpha1.MigrationSucceeded)
	held.kept(t)
	for _, vm := range vms {
		if at := vm.node(t); at == drainedNode {
			t.Errorf("VM %s is on %s still", vm, at)
		}
		if now := vm.addresses(t); now != had[vm.Name] {
			t.Errorf("the row of VM %s had %s, has %s", vm, had[vm.Name], now)
		}
	}
	var pods corev1.PodList
	if err := cluster.api.List(t.Context(), &pods, client.MatchingLabels{drainLabel: "yes"}, client.MatchingFields{"spec.nodeName": drainedNode}); err != nil || len(pods.Items) > 0 {
		t.Errorf("%d launchers are left on %s (%v)", len(pods.Items), drainedNode, err)
	}
	consistent(t)
}

// planned: `kubectl ovn drain plan` says of each VM that it moves. Others that are on the node may have another fate, and make it an error.
func planned(t *testing.T, vms []*machine) {
	t.Helper()
	var out *printed
	eventually(t, settleTimeout, func(ctx context.Context) error {
		out = &printed{}
		err := kubectlOVN(ctx, out, "default", "drain", "plan", drainedNode)
		for _, vm := range vms {
			line := regexp.MustCompile(`(?m)^` + vm.Namespace + ` +` + vm.Name + ` +moves `)
			if !line.MatchString(out.String()) {
				return fmt.Errorf("it does not say that VM %s moves (%w):\n%s", vm, err, out.String())
			}
		}
		return nil
	})
	t.Logf("kubectl ovn drain plan %s\n%s", drainedNode, out.String())
}

// bootAll boots VMs on the node that is to be drained.
func bootAll(t *testing.T, name string, n int) []*machine {
	t.Helper()
	vms := make([]*machine, n)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(time.Minute))
		defer cancel()
		for _, vm := range vms {
			if vm != nil {
				if err := vm.Delete(ctx); err != nil {
					t.Errorf("delete VM %s: %v", vm, err)
				}
			}
		}
	})
	g, ctx := errgroup.WithContext(t.Context())
	for i := range vms {
		g.Go(func() (err error) {
			vms[i], err = boot(ctx, lab.VMOptions{
				Name: fmt.Sprintf("%s-%d", name, i+1), Node: drainedNode, Eviction: kubevirtv1.EvictionStrategyLiveMigrate, Labels: map[string]string{drainLabel: "yes"},
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return vms
}

// addresses are the MAC and the IP addresses of the VM's row.
func (m *machine) addresses(t *testing.T) string {
	t.Helper()
	row, err := m.portRow(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(row.Addresses, "; ")
}

// runs are traffic from one pod to several VMs.
type runs map[*machine]*traffic.Run

func holdAll(t *testing.T, from reach.Pod, vms []*machine) runs {
	t.Helper()
	held := runs{}
	for _, vm := range vms {
		run, err := traffic.Begin(t.Context(), podPlace(t, from), traffic.Spec{
			Peers: vm.ips, Echo: traffic.Echoing{Connections: 6, Interval: traffic.Duration{Duration: 100 * time.Millisecond}}, Silence: traffic.Duration{Duration: silence},
		})
		if err != nil {
			t.Fatal(err)
		}
		held[vm] = run
	}
	for vm, run := range held {
		eventually(t, 20*time.Second, func(context.Context) error {
			if s := run.Status(); s.Open < s.Wanted {
				return fmt.Errorf("connections to VM %s are not open yet: %+v", vm, s)
			}
			return nil
		})
	}
	return held
}

// kept ends the traffic, and fails the test for connections that broke.
func (r runs) kept(t *testing.T) {
	t.Helper()
	time.Sleep(500 * time.Millisecond) // as in machine.watch
	for vm, run := range r {
		result, err := run.Stop(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open, broken := result.Open()
		if broken > 0 {
			t.Errorf("VM %s: %d of %d connections broke: %+v", vm, broken, open, result.Connections)
		}
		t.Logf("VM %s: %d connections held for %s", vm, open, result.Length.Round(time.Second))
	}
}

// drain is a kubectl that drains the node.
type drain struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// startDrain drains the node of VMs that have the label, and of nothing else.
func startDrain(t *testing.T) *drain {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(drainTimeout))
	t.Cleanup(cancel)
	d := &drain{cmd: exec.CommandContext(ctx, cluster.kubectl, "--kubeconfig", cluster.Kubeconfig(), "drain", drainedNode, "--pod-selector", drainLabel+"=yes",
		"--delete-emptydir-data", "--ignore-daemonsets")}
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *drain) wait() error {
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("kubectl drain: %w:\n%s", err, &d.out)
	}
	return nil
}

// giveUp drains the node until two VMs are on their way and the third waits, ends kubectl as Ctrl-C does, uncordons the node, and lets the VMs stay.
func giveUp(t *testing.T, vms []*machine) {
	t.Helper()
	for _, vm := range vms {
		hold(t, vm, kubevirt.HoldAnnotation+"="+string(kubevirt.StageStart))
	}
	d := startDrain(t)
	eventually(t, time.Minute, func(ctx context.Context) error {
		phases := map[kubevirtv1.VirtualMachineInstanceMigrationPhase]int{}
		for _, vm := range vms {
			list, err := vm.Migrations(ctx)
			if err != nil {
				return err
			}
			for i := range list {
				phases[list[i].Status.Phase]++
			}
		}
		if phases[kubevirtv1.MigrationTargetReady] != 2 || phases[kubevirtv1.MigrationPending] != 1 {
			return fmt.Errorf("evacuations by phase: %v: want two that are ready to begin and one that waits", phases)
		}
		return nil
	})
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var status *exec.ExitError
	if err := d.cmd.Wait(); !errors.As(err, &status) {
		t.Fatalf("kubectl drain ended with %v: want it interrupted:\n%s", err, &d.out)
	}
	if _, err := kubectl(t.Context(), "uncordon", drainedNode); err != nil {
		t.Fatal(err)
	}
	for _, vm := range vms {
		if err := vm.CancelEvacuation(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := vm.Migrations(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatalf("VM %s has %d migrations (%v), want its evacuation", vm, len(list), err)
		}
		g := &lab.Migration{VM: vm.VM, Name: list[0].Name, UID: list[0].UID}
		if err := g.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, settleTimeout, func(ctx context.Context) error { return g.AwaitGone(ctx) })
		hold(t, vm, kubevirt.HoldAnnotation+"-")
	}
}

// hold sets or removes an annotation of the VM's instance.
func hold(t *testing.T, vm *machine, annotation string) {
	t.Helper()
	if _, err := kubectl(t.Context(), "-n", vm.Namespace, "annotate", "vmi", vm.Name, annotation); err != nil {
		t.Fatal(err)
	}
}

// left fails the test when something of evacuations is left: a mark, a migration that has not ended, what a row asks for, a record without an end, or with another.
func left(t *testing.T, vms []*machine, result v1alpha1.MigrationResult) {
	t.Helper()
	for _, vm := range vms {
		eventually(t, settleTimeout, func(ctx context.Context) error {
			vmi, err := vm.VMI(ctx)
			if err != nil {
				return err
			}
			list, err := vm.Migrations(ctx)
			if err != nil {
				return err
			}
			open := slices.DeleteFunc(list, func(g kubevirtv1.VirtualMachineInstanceMigration) bool {
				return g.Status.Phase == kubevirtv1.MigrationSucceeded || g.Status.Phase == kubevirtv1.MigrationFailed
			})
			if vmi.Status.EvacuationNodeName != "" || len(open) > 0 {
				return fmt.Errorf("VM %s is to leave %q, %d of its migrations have not ended", vm, vmi.Status.EvacuationNodeName, len(open))
			}
			return errors.Join(over(ctx, vm, result), portAttached(ctx, vm, vmi.Status.NodeName))
		})
		vm.untouched(t)
	}
}

// over is nil when the VM's records have ended, and the last one so.
func over(ctx context.Context, vm *machine, result v1alpha1.MigrationResult) error {
	var list v1alpha1.PortMigrationList
	if err := cluster.api.List(ctx, &list, client.InNamespace(vm.Namespace)); err != nil {
		return err
	}
	var last *v1alpha1.PortMigration
	for i := range list.Items {
		pm := &list.Items[i]
		if pm.Spec.VMI.Name != vm.Name {
			continue
		}
		if !pm.Status.Over() {
			return fmt.Errorf("PortMigration %s is not over: %+v", pm.Name, pm.Status)
		}
		if last == nil || last.CreationTimestamp.Before(&pm.CreationTimestamp) {
			last = pm
		}
	}
	// One that waited for others has no target, and no record.
	if last != nil && last.Status.Result != result {
		return fmt.Errorf("PortMigration %s is %s, want %s", last.Name, last.Status.Result, result)
	}
	return nil
}

// portAttached is nil when the VM's Port says that it is attached on a node.
func portAttached(ctx context.Context, vm *machine, node string) error {
	var port v1alpha1.Port
	if err := cluster.api.Get(ctx, vm.Key(), &port); err != nil {
		return err
	}
	if port.Status.Phase != v1alpha1.PortAttached || port.Status.Node != node {
		return fmt.Errorf("Port %s is %s on %s: want %s on %s", port.Name, port.Status.Phase, port.Status.Node, v1alpha1.PortAttached, node)
	}
	return nil
}
