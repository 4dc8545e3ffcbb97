package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/prometheus"
)

const (
	// alarmTimeout is how long an alert may take to fire, or to end: a few scrapes, the seconds that it waits, and what the fault itself needs to be found.
	alarmTimeout = 2 * time.Minute
	// unheard is how long a VM's network is interrupted, which is to be found longer than the alert allows.
	unheard = 3 * time.Second
)

// hastened are the alerts with waits of seconds.
func hastened(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := prometheus.Hasten(rulesFile(t), file); err != nil {
		t.Fatal(err)
	}
	return file
}

// alarms is a Prometheus whose alerts are waited for.
type alarms struct {
	*prometheus.Server
	began time.Time
	// fired are those that did.
	fired map[string]bool
}

// await waits until an alert fires with these labels. More is done before each look: what keeps up the fault.
func (a *alarms) await(t *testing.T, name string, labels model.LabelSet, more ...func(context.Context) error) {
	t.Helper()
	start := time.Now()
	eventually(t, alarmTimeout, func(ctx context.Context) error {
		for _, f := range more {
			if err := f(ctx); err != nil {
				return err
			}
		}
		summary, err := a.Fires(ctx, name, labels)
		if err == nil {
			t.Logf("%s fires after %s: %s", name, time.Since(start).Round(100*time.Millisecond), summary)
		}
		return err
	})
	a.fired[name] = true
}

// silent waits until the lab is known, and none of the alerts fires.
func (a *alarms) silent(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, alarmTimeout, func(ctx context.Context) error {
		now := promv1.Range{Start: time.Now(), End: time.Now(), Step: time.Second}
		if _, err := series(ctx, a.API, `count_over_time(godwit_ovn_connected{database="northbound"}[5s]) >= 3`, now); err != nil {
			return err
		}
		all, err := a.Firing(ctx)
		for _, name := range names {
			if len(all[name]) > 0 {
				err = fmt.Errorf("%s fires: %v", name, all[name])
			}
		}
		return err
	})
	t.Logf("all is well after %s", time.Since(a.began).Round(100*time.Millisecond))
}

// warning and critical are the labels of an alert that has no others, with more.
func warning(more model.LabelSet) model.LabelSet {
	return more.Merge(model.LabelSet{"severity": "warning"})
}

func critical(more model.LabelSet) model.LabelSet {
	return more.Merge(model.LabelSet{"severity": "critical"})
}

// agentOf is what names a node's agent in an alert.
func agentOf(node string) model.LabelSet {
	return model.LabelSet{"instance": model.LabelValue(net.JoinHostPort(cluster.NodeIPs(node)[0].String(), "9476"))}
}

// scrapedFrom is agentOf where the alert keeps the labels of the series.
func scrapedFrom(node string) model.LabelSet {
	return agentOf(node).Merge(model.LabelSet{"job": "agent"})
}

// Real faults, and the alerts that a real Prometheus makes of them: with their labels, while they last, and no longer.
func TestObserveAlerts(t *testing.T) {
	s := newScene(t, "alerts", 0)
	setScene(t, s)
	a := &alarms{Server: observer(t, hastened(t)), began: time.Now(), fired: map[string]bool{}}
	expected := []string{
		"GodwitAgentNotReady", "GodwitCertificateExpires", "GodwitControllerAbsent", "GodwitControllerDisconnected", "GodwitDatabaseUnreachable", "GodwitDatapathLosesPackets", "GodwitForbiddenClaim",
		"GodwitMigrationInterruption", "GodwitMigrationStuck", "GodwitMigrationsFail", "GodwitNodeWithoutChassis", "GodwitOVNSlow", "GodwitPortWithoutChassis", "GodwitServiceWritesFail", "GodwitStalePin",
		"GodwitSubnetNearlyFull", "GodwitTunnelMissing",
	}
	a.silent(t, expected...)
	a.badMigrations(t, s)
	a.badNode(t, s)
	a.badCentre(t, s)
	a.silent(t, expected...)
	for _, name := range expected {
		if !a.fired[name] {
			t.Errorf("%s was not waited for", name)
		}
	}
	consistent(t)
}

// badMigrations: some are cancelled, one takes long, and interrupts the VM's network, while a Subnet is full, a pin is left behind, another program holds a node's table of Services, and the datapath of another
// has room for one flow.
func (a *alarms) badMigrations(t *testing.T, s *passage.Scene) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	quiet := make(chan struct{})
	go func() {
		defer close(quiet)
		_ = talk(ctx, s) // what becomes of connections is other tests' matter
	}()
	empty, remove, release, relieve := fillSubnet(t), leavePin(t, s), holdServices(t, s.Target), crowd(t, s.Source, s.Guest.IPs[0])
	a.await(t, "GodwitMigrationsFail", warning(nil), func(context.Context) error { cancelled(t, s); return nil }) //nolint:contextcheck // a migration is cancelled as a whole
	g, err := s.VM.Migrate(t.Context(), lab.MigrateOptions{To: s.Target, Hold: []kubevirt.Stage{kubevirt.StageMigrate, kubevirt.StageSwitchover}})
	if err != nil {
		t.Fatal(err)
	}
	a.await(t, "GodwitSubnetNearlyFull", warning(model.LabelSet{"subnet": "nearly-full"}))
	a.await(t, "GodwitStalePin", warning(nil))
	a.await(t, "GodwitServiceWritesFail", warning(scrapedFrom(s.Target)))
	a.await(t, "GodwitDatapathLosesPackets", warning(agentOf(s.Source)))
	a.await(t, "GodwitMigrationStuck", warning(nil))
	relieve()
	empty()
	remove()
	release()
	interrupted(t, s, g)
	a.await(t, "GodwitMigrationInterruption", warning(nil))
	cancel()
	<-quiet
}

// badNode: the ovn-controller of the node to which the VM has moved hangs, the node's tunnels are gone, then its Open vSwitch database hangs too, and it has claimed a port that is another's; then its Chassis is gone.
func (a *alarms) badNode(t *testing.T, s *passage.Scene) {
	t.Helper()
	thaw := hanging(t, "ovn-controller", anyOf, s.Target)
	cutOff(t, s)
	claim, remove := claimForbidden(t, s)
	a.await(t, "GodwitPortWithoutChassis", critical(nil))
	a.await(t, "GodwitTunnelMissing", critical(scrapedFrom(s.Target).Merge(model.LabelSet{"state": "made"})))
	revive := hanging(t, "ovsdb-server", openvswitch, s.Target)
	a.await(t, "GodwitOVNSlow", warning(agentOf(s.Target).Merge(model.LabelSet{"daemon": "ovn-controller"})))
	a.await(t, "GodwitAgentNotReady", warning(scrapedFrom(s.Target)))
	revive()
	a.await(t, "GodwitForbiddenClaim", critical(model.LabelSet{"node": model.LabelValue(s.Target)}), claim)
	remove()
	southbound(t.Context(), t, "chassis-del", s.Target)
	a.await(t, "GodwitNodeWithoutChassis", critical(nil))
	thaw()
}

// badCentre: OVN's databases hang; then the controllers do, and nobody signs for a node's certificate that is near its end.
func (a *alarms) badCentre(t *testing.T, s *passage.Scene) {
	t.Helper()
	thaw := hanging(t, "ovsdb-server", databases, cluster.Central()...)
	a.await(t, "GodwitControllerDisconnected", critical(scrapedFrom(s.Target)))
	a.await(t, "GodwitDatabaseUnreachable", critical(model.LabelSet{"database": "northbound"}))
	a.await(t, "GodwitDatabaseUnreachable", critical(model.LabelSet{"database": "southbound"}))
	thaw()
	thaw = hanging(t, "godwit-controller", anyOf, cluster.NodeNames()...)
	age(t, s.Source)
	a.await(t, "GodwitControllerAbsent", critical(nil))
	a.await(t, "GodwitCertificateExpires", warning(agentOf(s.Source).Merge(model.LabelSet{"certificate": "node"})))
	thaw()
	settled(t)
}
