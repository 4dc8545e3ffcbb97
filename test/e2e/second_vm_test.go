package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/test/lab"
)

// A VM with a second NIC has a Port and a row for it, which move with it in the same migration: addresses, MAC and row are what they were, the guest answers on both.
func TestLifecycleSecondNetworkVM(t *testing.T) {
	withMultus(t)
	secondSubnet(t, "second-vm", "vm", map[string]string{lab.IPv4: "10.78.0.0/24", lab.IPv6: "fd00:78::/64"})
	ns := namespace(t, map[string]string{"second": "vm"})
	definition(t, ns, "blue", "second-vm")
	asks := server(ns, "asks", "node3")
	asks.Annotations = map[string]string{nad.Annotation: "blue"}
	create(t, asks)
	from := ready(t, ns, 1)["asks"]
	m := bootVM(t, lab.VMOptions{Namespace: ns, Name: "two", Networks: []string{"blue"}, Node: "node1"})

	port := &v1alpha1.Port{}
	if err := cluster.api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "two-blue"}, port); err != nil {
		t.Fatal(err)
	}
	began, status := m.secondRow(t), port.Status
	if len(status.IPs) != families() || status.Subnet != "second-vm" {
		t.Fatalf("the Port of the second NIC has %+v, want %d addresses in Subnet second-vm", status, families())
	}
	m.answersFrom(t, from, status.IPs)
	for range 2 { // there, and to another
		to := m.another(t, asks.Spec.NodeSelector["kubernetes.io/hostname"])
		m.moveTo(t, to)
		m.answersFrom(t, from, status.IPs)
		m.untouched(t)
		eventually(t, settleTimeout, func(ctx context.Context) error {
			err := cluster.api.Get(ctx, client.ObjectKeyFromObject(port), port)
			if err == nil && (!slices.Equal(port.Status.IPs, status.IPs) || port.Status.MAC != status.MAC || port.Status.Node != to || port.Status.Phase != v1alpha1.PortAttached) {
				err = fmt.Errorf("the Port of the second NIC has %+v, want it on %s with what it had: %+v", port.Status, to, status)
			}
			return err
		})
		if now := m.secondRow(t); now != began {
			t.Errorf("the row of the second NIC was %s, is %s", began, now)
		}
		var pms v1alpha1.PortMigrationList
		if err := cluster.api.List(t.Context(), &pms, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		for _, pm := range pms.Items {
			if len(pm.Spec.Ports) != 2 {
				t.Errorf("PortMigration %s is of ports %+v, want both", pm.Name, pm.Spec.Ports)
			}
			t.Logf("%s: %s, interruption %+v", pm.Name, pm.Status.Result, pm.Status.Interruption)
		}
	}
	consistent(t)
}

// secondRow is the UUID of the VM's row on network blue.
func (m *machine) secondRow(t *testing.T) string {
	t.Helper()
	row, err := cluster.nb.Port(t.Context(), ident.VMPort(m.Namespace, m.Name, "blue"))
	if err == nil && row == nil {
		err = errors.New("there is none")
	}
	if err != nil {
		t.Fatalf("row of VM %s on network blue: %v", m, err)
	}
	return row.UUID
}
