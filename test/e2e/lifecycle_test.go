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

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
)

// fixed is an address of each of the lab's families, and a MAC, that nobody else has.
func fixed() (ips []netip.Addr, annotations map[string]string) {
	var text string
	for family, ip := range map[string]string{lab.IPv4: "10.244.200.7", lab.IPv6: "fd00:10:244::c807"} {
		if cluster.IPFamily() == lab.DualStack || cluster.IPFamily() == family {
			ips = append(ips, netip.MustParseAddr(ip))
			text += " " + ip + ","
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return ips, map[string]string{v1alpha1.IPsAnnotation: text, v1alpha1.MACAnnotation: "02:67:6f:64:c8:07", v1alpha1.ReclaimAnnotation: string(v1alpha1.ReclaimRetain)}
}

// A VM answers on the addresses and has the MAC that its template asks for, and does so again when it was stopped. Its Port is kept for
// the next VM of its name. A pod that asks for an address that is a VM's waits with a word.
func TestLifecycleAnnotations(t *testing.T) {
	ips, annotations := fixed()
	const name = "asked"
	var m *machine
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(time.Minute))
		defer cancel()
		if m == nil {
			return
		}
		if err := m.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
	var err error
	if m, err = boot(t.Context(), lab.VMOptions{Name: name, Annotations: annotations}); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		got, err := m.Addresses(t.Context())
		if err != nil || !slices.Equal(got, ips) {
			t.Errorf("the VM has %v (%v), want %v", got, err, ips)
		}
		row, err := m.portRow(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if row.UUID != m.row || !strings.HasPrefix(row.Addresses[0], annotations[v1alpha1.MACAnnotation]+" ") {
			t.Errorf("the row %s has %q, want row %s and MAC %s", row.UUID, row.Addresses, m.row, annotations[v1alpha1.MACAnnotation])
		}
	}
	check()

	ns := namespace(t, nil)
	late := server(ns, "late", "node1")
	late.Annotations = map[string]string{v1alpha1.IPsAnnotation: ips[0].String()}
	create(t, late)
	eventually(t, settleTimeout, func(ctx context.Context) error {
		out, err := kubectl(ctx, "-n", ns, "get", "events", "--field-selector", "reason=AddressTaken,involvedObject.name=late", "-o", "name")
		if err == nil && strings.TrimSpace(out) == "" {
			err = errors.New("a pod asks for an address that is a VM's, and is told nothing")
		}
		return err
	})

	ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Minute))
	defer cancel()
	for _, step := range []func(context.Context) error{m.Stop, m.AwaitStopped, m.Start} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.AwaitRunning(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.AwaitAnswer(ctx); err != nil {
		t.Fatal(err)
	}
	check()

	if err := m.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	port := &v1alpha1.Port{}
	port.Namespace, port.Name = m.Namespace, m.Name
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(cluster.api.Delete(context.WithoutCancel(t.Context()), port)); err != nil {
			t.Error(err)
		}
	})
	eventually(t, settleTimeout, func(ctx context.Context) error {
		err := cluster.api.Get(ctx, client.ObjectKeyFromObject(port), port)
		if err == nil && port.Status.Phase != v1alpha1.PortReserved {
			err = fmt.Errorf("the VM is gone, and its Port is %s", port.Status.Phase)
		}
		return err
	})
	if _, err := boot(t.Context(), lab.VMOptions{Name: name}); err != nil {
		t.Fatal(err)
	}
	check()
	consistent(t)
}
