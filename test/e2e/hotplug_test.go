package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// A NIC that is added to a running VM's template has its Port at once, and comes into the guest by migration: with its addresses, while the first NIC is as it was. It
// moves along from then on. One that is called absent leaves the guest, and its Port goes.
func TestLifecycleHotplug(t *testing.T) {
	withMultus(t)
	secondSubnet(t, "hotplug", "hotplug", map[string]string{lab.IPv4: "10.79.0.0/24", lab.IPv6: "fd00:79::/64"})
	ns := namespace(t, map[string]string{"second": "hotplug"})
	definition(t, ns, "blue", "hotplug")
	asks := server(ns, "asks", "node3")
	asks.Annotations = map[string]string{nad.Annotation: "blue"}
	create(t, asks)
	from := ready(t, ns, 1)["asks"]
	m := bootVM(t, lab.VMOptions{Namespace: ns, Name: "plugs", Node: "node1"})

	if out, err := kubectl(t.Context(), "-n", ns, "patch", "vm", "plugs", "--type=json", "-p", `[
		{"op": "add", "path": "/spec/template/spec/networks/-", "value": {"name": "blue", "multus": {"networkName": "blue"}}},
		{"op": "add", "path": "/spec/template/spec/domain/devices/interfaces/-", "value": {"name": "blue", "bridge": {}}}]`); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	port := &v1alpha1.Port{}
	port.Namespace, port.Name = ns, "plugs-blue"
	eventually(t, settleTimeout, func(ctx context.Context) error {
		vmi, err := m.VMI(ctx)
		if err == nil && !slices.ContainsFunc(vmi.Status.Conditions, func(c kubevirtv1.VirtualMachineInstanceCondition) bool {
			return c.Type == kubevirtv1.VirtualMachineInstanceMigrationRequired
		}) {
			err = errors.New("the VMI is not said to need a migration")
		}
		err = errors.Join(err, cluster.api.Get(ctx, client.ObjectKeyFromObject(port), port))
		if err == nil && len(port.Status.IPs) != families() {
			err = fmt.Errorf("the Port of the new NIC has %+v, want %d addresses", port.Status, families())
		}
		return err
	})
	status := port.Status

	for range 2 { // it comes, and moves along
		m.moveTo(t, m.another(t, asks.Spec.NodeSelector["kubernetes.io/hostname"]))
		eventually(t, settleTimeout, func(ctx context.Context) error { return m.hasNIC(ctx, "eth1", status) })
		m.answersFrom(t, from, status.IPs)
		m.untouched(t)
	}

	if out, err := kubectl(t.Context(), "-n", ns, "patch", "vm", "plugs", "--type=json", "-p",
		`[{"op": "add", "path": "/spec/template/spec/domain/devices/interfaces/1/state", "value": "absent"}]`); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, settleTimeout, func(ctx context.Context) error {
		if err := cluster.api.Get(ctx, client.ObjectKeyFromObject(port), port); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the NIC is unplugged, and its Port is there: %+v (%w)", port.Status, err)
		}
		row, err := cluster.nb.Port(ctx, ident.VMPort(ns, "plugs", "blue"))
		if err == nil && row != nil {
			err = fmt.Errorf("the NIC is unplugged, and its row is there: %+v", row)
		}
		links, shErr := m.sh(ctx, "ls /sys/class/net")
		if shErr == nil && strings.Contains(links, "eth1") {
			shErr = fmt.Errorf("the NIC is unplugged, and the guest has %s", links)
		}
		return errors.Join(err, shErr)
	})
	m.moveTo(t, m.another(t, asks.Spec.NodeSelector["kubernetes.io/hostname"]))
	m.answersFrom(t, from, nil)
	m.untouched(t)
	consistent(t)
}

// moveTo migrates the VM.
func (m *machine) moveTo(t *testing.T, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Minute))
	defer cancel()
	mig, err := m.Migrate(ctx, lab.MigrateOptions{To: node})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mig.AwaitSuccess(ctx); err != nil {
		t.Fatal(err)
	}
}

// hasNIC asks the guest whether it has a NIC with what a Port says.
func (m *machine) hasNIC(ctx context.Context, nic string, want v1alpha1.PortStatus) error {
	out, err := m.sh(ctx, "ip addr show "+nic)
	if err != nil {
		return err
	}
	for _, text := range append([]string{want.MAC}, want.IPs...) {
		if !strings.Contains(out, text) {
			return fmt.Errorf("the guest's %s has not %s: %s", nic, text, out)
		}
	}
	return nil
}

// answersFrom has a pod ask the guest on its first NIC's addresses, and on others.
func (m *machine) answersFrom(t *testing.T, from reach.Pod, others []string) {
	t.Helper()
	cmd := []string{"-n", from.Namespace, "exec", from.Name, "--", "/bin/probe", "-timeout", "2s"}
	for _, ip := range m.ips {
		cmd = append(cmd, "tcp://"+netip.AddrPortFrom(ip, 7).String())
	}
	for _, text := range others {
		cmd = append(cmd, "tcp://"+netip.AddrPortFrom(netip.MustParseAddr(text), 7).String())
	}
	eventually(t, time.Minute, func(ctx context.Context) error {
		out, err := kubectl(ctx, cmd...)
		if err != nil {
			err = fmt.Errorf("the guest does not answer: %w: %s", err, out)
		}
		return err
	})
}
