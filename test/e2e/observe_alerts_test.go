package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// alarmTimeout is how long an alert may take to fire, or to end: a few scrapes and the seconds that it waits.
const alarmTimeout = 30 * time.Second

// hastened are the alerts with waits of seconds in place of minutes: all that the rules have is what they are about, but for how long.
func hastened(t *testing.T) string {
	t.Helper()
	rules, err := os.ReadFile(rulesFile(t))
	if err != nil {
		t.Fatal(err)
	}
	text := string(rules)
	for pattern, to := range map[string]string{`for: \d+m\n`: "for: 2s\n", `(_longest_seconds\)) > 900\n`: "$1 > 3\n"} {
		what := regexp.MustCompile(pattern)
		if !what.MatchString(text) {
			t.Fatalf("the rules have nothing like %s", pattern)
		}
		text = what.ReplaceAllString(text, to)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// firing are the alerts that fire, by name.
func firing(ctx context.Context, api promv1.API) (map[string][]promv1.Alert, error) {
	all, err := api.Alerts(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]promv1.Alert{}
	for _, a := range all.Alerts {
		if name := string(a.Labels[model.AlertNameLabel]); a.State == promv1.AlertStateFiring {
			out[name] = append(out[name], a)
		}
	}
	return out, nil
}

// alarmed waits until an alert fires with these labels, and looks at what it says.
func alarmed(t *testing.T, api promv1.API, name string, labels model.LabelSet) {
	t.Helper()
	start := time.Now()
	labels[model.AlertNameLabel] = model.LabelValue(name)
	eventually(t, alarmTimeout, func(ctx context.Context) error {
		all, err := firing(ctx, api)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all[name], func(a promv1.Alert) bool { return a.Labels.Equal(labels) })
		if i < 0 {
			return fmt.Errorf("%s with %v does not fire; these do: %v", name, labels, all)
		}
		summary, page := string(all[name][i].Annotations["summary"]), string(all[name][i].Annotations["runbook_url"])
		if summary == "" || strings.ContainsAny(summary, "{}<>") || !strings.HasSuffix(page, "#"+strings.ToLower(name)) {
			t.Errorf("%s says %q, and names %s", name, summary, page)
		}
		t.Logf("%s fires after %s: %s", name, time.Since(start).Round(100*time.Millisecond), summary)
		return nil
	})
}

// Real faults, and the alerts that a real Prometheus makes of them: with their labels, while they last, and no longer.
func TestObserveAlerts(t *testing.T) {
	s := newScene(t, "alerts", 0)
	setScene(t, s)
	start := time.Now()
	api := observer(t, hastened(t))
	expected := []string{"GodwitMigrationStuck", "GodwitSubnetNearlyFull", "GodwitStalePin", "GodwitPortWithoutChassis", "GodwitTunnelMissing"}
	silent := func(ctx context.Context) error {
		if _, err := series(ctx, api, `count_over_time(godwit_ovn_connected{database="northbound"}[5s]) >= 3`, promv1.Range{Start: time.Now(), End: time.Now(), Step: time.Second}); err != nil {
			return err // it knows nothing yet
		}
		all, err := firing(ctx, api)
		for _, name := range expected {
			if len(all[name]) > 0 {
				err = fmt.Errorf("%s fires: %v", name, all[name])
			}
		}
		return err
	}
	eventually(t, alarmTimeout, silent)
	t.Logf("a Prometheus that knows the lab, after %s", time.Since(start).Round(100*time.Millisecond))

	g, err := s.VM.Migrate(t.Context(), lab.MigrateOptions{To: s.Target, Hold: []kubevirt.Stage{kubevirt.StageMigrate}})
	if err != nil {
		t.Fatal(err)
	}
	empty := fillSubnet(t)
	remove := leavePin(t, s)
	alarmed(t, api, "GodwitMigrationStuck", model.LabelSet{"severity": "warning"})
	alarmed(t, api, "GodwitSubnetNearlyFull", model.LabelSet{"severity": "warning", "subnet": "nearly-full"})
	alarmed(t, api, "GodwitStalePin", model.LabelSet{"severity": "warning"})
	empty()
	remove()
	if err := g.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(t.Context()); err != nil {
		t.Fatal(err)
	}

	thaw := cutOff(t, s)
	alarmed(t, api, "GodwitPortWithoutChassis", model.LabelSet{"severity": "critical"})
	alarmed(t, api, "GodwitTunnelMissing", model.LabelSet{"severity": "critical", "job": "agent", "state": "made", "instance": model.LabelValue(net.JoinHostPort(cluster.NodeIPs(s.Target)[0].String(), "9476"))})
	thaw()
	eventually(t, alarmTimeout, silent)
	t.Logf("all is well again after %s", time.Since(start).Round(100*time.Millisecond))
	consistent(t)
}

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

// leavePin makes a row that asks for two nodes, as something would leave behind that the controller does not know any more. What it returns, and the end of the test, removes it.
func leavePin(t *testing.T, s *passage.Scene) (remove func()) {
	t.Helper()
	const row = "vm/none/left-behind/default"
	nbctl := func(ctx context.Context, args ...string) {
		if out, err := cluster.Exec(ctx, "hub", append([]string{"ovn-nbctl", "--db=" + cluster.NB()}, args...)...); err != nil {
			t.Errorf("%s %v", out, err)
		}
	}
	t.Cleanup(func() { nbctl(context.WithoutCancel(t.Context()), "--if-exists", "lsp-del", row) })
	nbctl(t.Context(), "lsp-add", "subnet/default", row, "--", "set", "Logical_Switch_Port", row,
		fmt.Sprintf(`options:requested-chassis="%s,%s"`, s.Source, s.Target), fmt.Sprintf(`external_ids:"%s"=left`, ident.OwnerKey))
	return func() { nbctl(t.Context(), "lsp-del", row) }
}

// cutOff freezes the ovn-controller of the node to which the VM has moved, and takes from the node its tunnels, and the VM's port. What it returns lets it go on, and mend that.
func cutOff(t *testing.T, s *passage.Scene) (thaw func()) {
	t.Helper()
	signal := func(ctx context.Context, name string) {
		if out, err := cluster.Exec(ctx, s.Target, "sh", "-c", `kill -"$0" $(pidof ovn-controller)`, name); err != nil {
			t.Errorf("SIG%s: %s %v", name, out, err)
		}
	}
	t.Cleanup(func() { signal(context.WithoutCancel(t.Context()), "CONT") }) // twice does no harm
	signal(t.Context(), "STOP")
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
	port := string(ident.VMPort(s.Namespace, s.VM.Name, ident.DefaultNetwork))
	if out, err := cluster.Exec(t.Context(), "hub", "ovn-sbctl", "--db="+cluster.SB(), "lsp-unbind", port); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	return func() { signal(t.Context(), "CONT") }
}
