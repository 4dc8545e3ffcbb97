package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/reach"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// machine is a VM of a test.
type machine struct {
	*lab.VM
	ips []netip.Addr
	// row is the UUID of its LogicalSwitchPort.
	row string
}

// bootVM creates a VM, waits until it answers on all of its addresses, and deletes it with the test.
func bootVM(t *testing.T, o lab.VMOptions) *machine {
	t.Helper()
	m, err := boot(t.Context(), o)
	if m != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(time.Minute))
			defer cancel()
			lastWords(t, m.VM)
			if err := m.Delete(ctx); err != nil {
				t.Errorf("delete VM %s: %v", m, err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// boot creates a VM and waits until it answers on all of its addresses. The machine is nil if there is none to delete.
func boot(ctx context.Context, o lab.VMOptions) (*machine, error) {
	vms, err := cluster.VMs()
	if err != nil {
		return nil, err
	}
	vm, err := vms.Create(ctx, o)
	if err != nil {
		return nil, err
	}
	m := &machine{VM: vm}
	ctx, cancel := context.WithTimeout(ctx, patience(90*time.Second))
	defer cancel()
	if _, err := vm.AwaitRunning(ctx); err != nil {
		return m, err
	}
	if m.ips, err = vm.Addresses(ctx); err != nil {
		return m, err
	}
	if o.Binding == guest.Masquerade { // stood in for by IPv4 alone, and answers by its launcher: see machine.answers
		m.ips = m.ips[:1]
	} else if err := vm.AwaitAnswer(ctx); err != nil {
		return m, err
	}
	row, err := m.portRow(ctx)
	if err != nil {
		return m, err
	}
	m.row = row.UUID
	return m, nil
}

// portRow is the VM's LogicalSwitchPort.
func (m *machine) portRow(ctx context.Context) (*nbdb.LogicalSwitchPort, error) {
	row, err := cluster.nb.Port(ctx, ident.VMPort(m.Namespace, m.Name, ident.DefaultNetwork))
	if err == nil && row == nil {
		err = fmt.Errorf("VM %s has no row", m)
	}
	return row, err
}

// node is where the VM runs.
func (m *machine) node(t *testing.T) string {
	t.Helper()
	vmi, err := m.VMI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return vmi.Status.NodeName
}

// another is a node where the VM does not run; not any of others either.
func (m *machine) another(t *testing.T, others ...string) string {
	t.Helper()
	here := m.node(t)
	for _, n := range cluster.NodeNames() {
		if n != here && !slices.Contains(others, n) {
			return n
		}
	}
	t.Fatal("no node is left")
	return ""
}

// untouched fails the test unless the VM has the row and the addresses that it began with, asks for one chassis, and nothing is left of a migration.
func (m *machine) untouched(t *testing.T) {
	t.Helper()
	node := m.node(t)
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		row, err := m.portRow(ctx)
		if err != nil {
			return err
		}
		if row.UUID != m.row {
			return fmt.Errorf("the row of VM %s was %s, is %s", m, m.row, row.UUID)
		}
		if row.Options["requested-chassis"] != node || row.Options["activation-strategy"] != "" {
			return fmt.Errorf("VM %s runs on %s, its row has %v", m, node, row.Options)
		}
		return nil
	})
	ips, err := m.Addresses(t.Context())
	if err != nil || !slices.Equal(ips, m.ips) {
		t.Errorf("VM %s had %v, has %v (%v)", m, m.ips, ips, err)
	}
}

// company is the traffic that a VM is watched with where no gap of milliseconds is judged: of more probes an emulated guest on a slow host answers only some.
func company(vm []netip.Addr) traffic.Spec {
	spec := traffic.Usual(vm...)
	spec.Probe.Interval.Duration, spec.Echo.Connections = 20*time.Millisecond, 6
	spec.Silence.Duration = silence
	return spec
}

// answers waits until the VM's guest answers a pod.
func (m *machine) answers(t *testing.T, from reach.Pod) {
	t.Helper()
	place := podPlace(t, from)
	eventually(t, time.Minute, func(ctx context.Context) error {
		conn, err := place.Dial(ctx, "tcp", netip.AddrPortFrom(m.ips[0], permittedEcho).String())
		if err != nil {
			return err
		}
		return errors.Join(echoed(conn, patience(time.Second)), conn.Close())
	})
}

// begun waits until all connections of a run to a VM are open, and a probe was answered.
func begun(t *testing.T, vm *machine, run *traffic.Run) {
	t.Helper()
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		s := run.Status()
		if s.Broken > 0 {
			result, err := run.Stop(ctx)
			if err != nil {
				t.Fatal(err)
			}
			t.Fatalf("traffic to VM %s has not begun: %+v, connections %+v", vm, s, result.Connections)
		}
		if s.Open < s.Wanted || s.Replied == 0 {
			return fmt.Errorf("traffic to VM %s has not begun: %+v", vm, s)
		}
		return nil
	})
}

// watch keeps traffic to a VM going from a pod while f runs, and fails the test if a connection breaks or the guest gets a packet twice.
func (m *machine) watch(t *testing.T, from reach.Pod, f func()) *traffic.Result {
	t.Helper()
	place := podPlace(t, from)
	run, err := traffic.Begin(t.Context(), place, company(m.ips))
	if err != nil {
		t.Fatal(err)
	}
	begun(t, m, run)
	f()
	time.Sleep(500 * time.Millisecond) // the connections go on after the move, or do not: a stalled one shows by then, a dead one at Stop
	result, err := run.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range result.Connections {
		if c.Broken != "" {
			t.Errorf("VM %s: a connection broke: %+v", m, c)
		}
	}
	for _, p := range result.Probes {
		t.Logf("VM %s from %s to %s: %d probes, %d lost, %d duplicated, longest gap %s", m, from.Name, p.Peer, p.Counts.Sent, p.Counts.Lost, p.Counts.Duplicated, p.Gap.Length())
		if p.Counts.Received == 0 {
			t.Errorf("VM %s never answered a probe to %s", m, p.Peer)
		}
	}
	arrivals, err := traffic.NewClient(place, netip.AddrPortFrom(m.ips[0], traffic.ControlPort)).Arrivals(t.Context(), result.Run)
	if err != nil {
		t.Fatal(err)
	}
	once(t, m.VM, result, arrivals)
	return result
}

// podPlace is a pod's network namespace, for traffic of this process.
func podPlace(t *testing.T, p reach.Pod) traffic.Place {
	t.Helper()
	ns, err := cluster.PodNamespace(p.Node, p.IPs[0])
	if err != nil {
		t.Fatal(err)
	}
	return traffic.Place{Namespace: ns}
}

// peer is a pod from which a VM is watched.
func peer(t *testing.T, node string) reach.Pod {
	t.Helper()
	ns := namespace(t, nil)
	create(t, server(ns, "peer", node))
	return ready(t, ns, 1)["peer"]
}

// migrate moves the VM and waits for the end.
func (m *machine) migrate(t *testing.T, o lab.MigrateOptions) *lab.Migration {
	t.Helper()
	g := m.begin(t, o)
	m.succeeded(t, g)
	return g
}

func (m *machine) begin(t *testing.T, o lab.MigrateOptions) *lab.Migration {
	t.Helper()
	g, err := m.Migrate(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (m *machine) succeeded(t *testing.T, g *lab.Migration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(60*time.Second))
	defer cancel()
	if _, err := g.AwaitSuccess(ctx); err != nil {
		t.Fatal(err)
	}
}

// record waits until the PortMigration of a migration is over, and returns it.
func record(t *testing.T, g *lab.Migration) (pm *v1alpha1.PortMigration) {
	t.Helper()
	eventually(t, 10*time.Second, func(ctx context.Context) (err error) {
		if pm, err = findRecord(ctx, g); err != nil {
			return err
		}
		if r := pm.Status.Result; r != v1alpha1.MigrationSucceeded && r != v1alpha1.MigrationFailed {
			return fmt.Errorf("PortMigration %s: %+v", pm.Name, pm.Status)
		}
		return nil
	})
	return pm
}

var errNoRecord = errors.New("there is no PortMigration of it")

// findRecord is the PortMigration of a migration as it is now; of one whose target KubeVirt has made anew the last.
func findRecord(ctx context.Context, g *lab.Migration) (*v1alpha1.PortMigration, error) {
	var list v1alpha1.PortMigrationList
	if err := cluster.api.List(ctx, &list, client.InNamespace(g.VM.Namespace)); err != nil {
		return nil, err
	}
	var last *v1alpha1.PortMigration
	var began time.Time
	for i := range list.Items {
		if pm := &list.Items[i]; pm.Spec.Migration.UID == g.UID {
			if at, _ := pm.Status.Stage(v1alpha1.StageScheduled); last == nil || at.After(began) {
				last, began = pm, at
			}
		}
	}
	if last == nil {
		return nil, fmt.Errorf("migration %s: %w", g, errNoRecord)
	}
	return last, nil
}
