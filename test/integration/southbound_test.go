package integration

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// Each VM's port is found with its own binding, however many VMs there are.
func TestBindingsOfSeveralVMs(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	e.installKubeVirt(t)
	e.namespace(t, "vms", nil)
	names := []string{"a", "b", "c"}
	for _, name := range names {
		vmi := e.vmi(t, key("vms", name))
		e.launcher(t, vmi, "virt-launcher-"+name, "n1", nil)
		e.asks(t, key("vms", name), "n1", "")
	}
	sb, err := ovn.ConnectSB(t.Context(), ovn.Config{
		Endpoints: []string{e.central.SB}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sb.Close)
	for _, name := range names {
		port := ident.VMPort("vms", name, ident.DefaultNetwork)
		eventually(t, func() error {
			b, err := sb.Binding(t.Context(), port)
			if err != nil || b == nil {
				return fmt.Errorf("Port_Binding of %s: %v, %w", port, b, err)
			}
			if b.LogicalPort != string(port) {
				return fmt.Errorf("Port_Binding of %s is that of %s", port, b.LogicalPort)
			}
			return nil
		})
	}
}
