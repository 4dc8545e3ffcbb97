package install

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/common/model"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/prometheus"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// scrapeInterval of the tests' Prometheus.
const scrapeInterval = time.Second

// centralJob is what the members of OVN's databases are scraped as.
const centralJob = "central"

// centralTarget is where a node's members tell their metrics.
func centralTarget(l *lab.Lab, node string) string { return net.JoinHostPort(l.NodeIPs(node)[0].String(), "9479") }

// alarms is a Prometheus that asks the databases' members, and whose alerts wait for seconds.
type alarms struct{ *prometheus.Server }

func newAlarms(t *testing.T, l *lab.Lab) alarms {
	t.Helper()
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	if err := prometheus.Hasten(filepath.Join(top, "dist/prometheus/rules.yaml"), rules); err != nil {
		t.Fatal(err)
	}
	hub, err := l.Namespace("hub")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string][]string{}
	for _, node := range l.NodeNames() {
		targets[centralJob] = append(targets[centralJob], centralTarget(l, node))
	}
	s, err := prometheus.Start(t.Context(), prometheus.Config{Namespace: hub, Dir: t.TempDir(), Targets: targets, Interval: scrapeInterval, Rules: rules, Log: fixture.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return alarms{s}
}

// fires waits for an alert with these labels.
func (a alarms) fires(t *testing.T, name string, labels model.LabelSet) {
	t.Helper()
	start := time.Now()
	eventually(t, func() error {
		summary, err := a.Fires(t.Context(), name, labels)
		if err == nil {
			t.Logf("%s fires after %s: %s", name, time.Since(start).Round(100*time.Millisecond), summary)
		}
		return err
	})
}

// end waits until alerts do not fire any more.
func (a alarms) end(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, func() error {
		all, err := a.Firing(t.Context())
		for _, name := range names {
			if len(all[name]) > 0 {
				err = fmt.Errorf("%s fires: %v", name, all[name])
			}
		}
		return err
	})
}
