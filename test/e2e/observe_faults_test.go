package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// fillSubnet makes a Subnet of which every address is reserved. What it returns, and the end of the test, removes it.
func fillSubnet(t *testing.T) (empty func()) {
	t.Helper()
	const name = "nearly-full"
	ns := namespace(t, map[string]string{"subnet": name})
	cidr := "10.79.0.0/29"
	if cluster.IPFamily() == "ipv6" {
		cidr = "fd00:79::/125"
	}
	subnet := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{
		CIDRs: []string{cidr}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"subnet": name}},
	}}
	if err := cluster.api.Create(t.Context(), subnet); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.api.Delete(context.WithoutCancel(t.Context()), subnet) })
	eventually(t, settleTimeout, func(ctx context.Context) error {
		if err := cluster.api.Get(ctx, types.NamespacedName{Name: name}, subnet); err != nil || subnet.Status.AvailableIPs == 0 {
			return fmt.Errorf("Subnet %s: %+v %w", name, subnet.Status, err)
		}
		return nil
	})
	var ports []*v1alpha1.Port
	for i := range int(subnet.Status.AvailableIPs) {
		p := &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("reserved-%d", i)}}
		p.Spec.Subnet, p.Spec.Target = name, v1alpha1.PortTarget{Kind: v1alpha1.KindVirtualMachine, Name: fmt.Sprintf("later-%d", i), Network: ident.DefaultNetwork}
		if err := cluster.api.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, p)
	}
	return func() {
		for _, p := range ports {
			if err := cluster.api.Delete(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
	}
}

// northbound changes the northbound database by hand, and southbound the other.
func northbound(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	if out, err := nbctl(ctx, args...); err != nil {
		t.Errorf("ovn-nbctl %v: %s %v", args, out, err)
	}
}

func southbound(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := sbctl(ctx, args...)
	if err != nil {
		t.Errorf("ovn-sbctl %v: %s %v", args, out, err)
	}
	return strings.TrimSpace(out)
}

// rowByHand makes a row of a VM that is nowhere. What it returns, and the end of the test, removes it.
func rowByHand(t *testing.T, row, chassis string) (remove func()) {
	t.Helper()
	t.Cleanup(func() { northbound(context.WithoutCancel(t.Context()), t, "--if-exists", "lsp-del", row) })
	northbound(t.Context(), t, "lsp-add", "subnet/default", row, "--", "set", "Logical_Switch_Port", row,
		fmt.Sprintf(`options:requested-chassis="%s"`, chassis), fmt.Sprintf(`external_ids:"%s"=left`, ident.OwnerKey))
	return func() { northbound(t.Context(), t, "lsp-del", row) }
}

// leavePin makes a row that asks for two nodes, as something would leave behind that the controller does not know any more.
func leavePin(t *testing.T, s *passage.Scene) (remove func()) {
	t.Helper()
	return rowByHand(t, "vm/none/left-behind/default", s.Source+","+s.Target)
}

// claimForbidden makes a row that asks for the source, and what claims it for the target again and again: the controller undoes that.
func claimForbidden(t *testing.T, s *passage.Scene) (claim func(context.Context) error, remove func()) {
	t.Helper()
	const row = "vm/none/claimed/default"
	remove = rowByHand(t, row, s.Source)
	eventually(t, settleTimeout, func(ctx context.Context) error {
		if southbound(ctx, t, "--bare", "--columns=_uuid", "find", "Port_Binding", "logical_port="+row) == "" {
			return fmt.Errorf("the southbound database has no port %s", row)
		}
		return nil
	})
	chassis := southbound(t.Context(), t, "--bare", "--columns=_uuid", "find", "Chassis", "name="+s.Target)
	return func(ctx context.Context) error {
		_, err := sbctl(ctx, "set", "Port_Binding", row, "chassis="+chassis)
		return err
	}, remove
}

// holdServices has another program take a node's table of Services for its own, for which nftables lets nobody else write it. What it returns, and the end of the test, ends the program.
func holdServices(t *testing.T, node string) (release func()) {
	t.Helper()
	const program = `{ echo "delete table inet godwit-services"; echo "add table inet godwit-services { flags owner; }"; sleep 3600; } | nft -i`
	pid, err := cluster.Exec(t.Context(), node, "sh", "-c", `setsid sh -c "$0" >/dev/null 2>&1 & echo $!`, program)
	if err != nil {
		t.Fatal(err)
	}
	return undo(t, func(ctx context.Context) error {
		_, err := cluster.Exec(ctx, node, "sh", "-c", `kill -- -"$0"`, strings.TrimSpace(pid))
		return err
	})
}

// undo returns what ends a fault, once; the end of the test does.
func undo(t *testing.T, end func(context.Context) error) func() {
	t.Helper()
	ended := false
	once := func() {
		if ended {
			return
		}
		ended = true
		if err := end(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(once)
	return once
}

// anyOf is in every command line, databases in those of OVN's databases, and openvswitch in that of Open vSwitch's beside them.
const (
	anyOf       = "."
	databases   = `/\(ovn\)*[ns]b[_db]*\.sock`
	openvswitch = `/openvswitch/db\.sock`
)

// hanging stops machines' processes of a name, with words in their command lines, without ending them. What it returns, and the end of the test, lets them go on.
func hanging(t *testing.T, process, words string, machines ...string) (thaw func()) {
	t.Helper()
	signal := func(ctx context.Context, name string) (told string, _ error) {
		for _, m := range machines {
			pids, err := cluster.Exec(ctx, m, "sh", "-c", `for p in $(pidof "$1"); do if grep -q "$2" /proc/$p/cmdline; then kill -"$0" "$p" && echo "$p"; fi; done`, name, process, words)
			if err != nil {
				return "", err
			}
			told += pids
		}
		return told, nil
	}
	thaw = undo(t, func(ctx context.Context) error { _, err := signal(ctx, "CONT"); return err })
	if told, err := signal(t.Context(), "STOP"); err != nil || told == "" {
		t.Fatalf("no %s with %q in its command line hangs on %v: %v", process, words, machines, err)
	}
	return thaw
}

// cancelled begins to move the VM, and cancels that.
func cancelled(t *testing.T, s *passage.Scene) {
	t.Helper()
	g, err := s.VM.Migrate(t.Context(), lab.MigrateOptions{To: s.Target, Hold: []kubevirt.Stage{kubevirt.StageMigrate}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitPhase(t.Context(), kubevirtv1.MigrationRunning); err != nil {
		t.Fatal(err)
	}
	if err := g.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.AwaitGone(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// interrupted lets a migration that is held go on until QEMU has stopped the VM on its source, and leaves it so for a while before the target gets the rest.
func interrupted(t *testing.T, s *passage.Scene, g *lab.Migration) {
	t.Helper()
	released := time.Now()
	if err := g.Hold(t.Context(), kubevirt.StageSwitchover); err != nil {
		t.Fatal(err)
	}
	eventually(t, settleTimeout+unheard, func(context.Context) error {
		entries, err := s.VM.Journal()
		if err == nil && !slices.ContainsFunc(entries, func(e kubevirt.Entry) bool {
			return e.Event == string(guest.Stopped) && e.Time.After(released) && time.Since(e.Time) > unheard
		}) {
			err = fmt.Errorf("QEMU has not stopped VM %s on %s for %s", s.VM, s.Source, unheard)
		}
		return err
	})
	if err := g.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// cutOff takes from the node to which the VM has moved, the ovn-controller of which hangs, its tunnels, and the VM's port.
func cutOff(t *testing.T, s *passage.Scene) {
	t.Helper()
	tunnels, err := cluster.Exec(t.Context(), s.Target, "ovs-vsctl", "--bare", "--columns=name", "find", "Interface", "type=geneve")
	if err != nil || tunnels == "" {
		t.Fatalf("tunnels of %s: %q, %v", s.Target, tunnels, err)
	}
	for _, tunnel := range strings.Fields(tunnels) {
		if out, err := cluster.Exec(t.Context(), s.Target, "ovs-vsctl", "del-port", "br-int", tunnel); err != nil {
			t.Fatalf("%s %v", out, err)
		}
	}
	t.Logf("%s has lost the tunnels %s", s.Target, strings.Join(strings.Fields(tunnels), ", "))
	southbound(t.Context(), t, "lsp-unbind", string(ident.VMPort(s.Namespace, s.VM.Name, ident.DefaultNetwork)))
}
