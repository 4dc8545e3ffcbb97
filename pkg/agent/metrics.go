package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/ovs"
)

// Stages of an ADD, in order.
const (
	stageReady     = "ready"
	stageIdentity  = "identity"
	stageVeth      = "veth"
	stageOVS       = "ovs"
	stageInstalled = "installed"
)

// Who announced a VM.
const (
	byVM    = "vm"
	byAgent = "agent"
)

// metrics of the agent, all durations in seconds.
type metrics struct {
	stages   *prometheus.HistogramVec
	requests *prometheus.HistogramVec
	ready    prometheus.GaugeFunc
	problems *prometheus.GaugeVec
	// observed counts migrations, announcements the ports that were opened on a target.
	observed, announcements *prometheus.CounterVec
	// switchovers counts what became of the signal, by switchoverEvents; signalling is 1 if there is one.
	switchovers *prometheus.CounterVec
	signalling  prometheus.Gauge
	// handoffEntries counts what became of entries of connection tracking, by handoffResults; handingOff is 1 if they are handed over.
	handoffEntries *prometheus.CounterVec
	handingOff     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, isReady func() bool) (*metrics, error) {
	m := &metrics{
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "godwit_agent_attach_stage_seconds",
			Help: "Time that each stage of a pod's attachment took: ready (the node), identity (the controller), veth, ovs, installed (OVN).",
			// 1 ms to 33 s.
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"stage"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "godwit_agent_cni_request_seconds", Help: "Time that CNI requests took, by command and outcome.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 17),
		}, []string{"command", "outcome"}),
		ready: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "godwit_agent_ready", Help: "1 if pods can be attached on the node, else 0.",
		}, func() float64 {
			if isReady() {
				return 1
			}
			return 0
		}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "godwit_agent_preflight_problems", Help: "What the agent found at its start that keeps pods from their network; its log names it and the remedy.",
		}, []string{"check"}),
		observed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_agent_migrations_observed_total", Help: "Live migrations from (source) and to (target) the node whose frames the agent looked at.",
		}, []string{"side"}),
		announcements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_agent_announcements_total",
			Help: "Ports of VMs that were announced on the node after a migration: by the VM (vm), or by the agent because the VM did not (agent).",
		}, []string{"by"}),
		switchovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_agent_switchover_total",
			Help: "What became of the signal that a migration has stopped a VM: on the source signalled, undelivered or unheard (nobody told of the stop), on the target opened, refused, withdrawn or restored.",
		}, []string{"event"}),
		signalling: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "godwit_agent_switchover_enabled", Help: "1 if the agent signals that a migration has stopped a VM, and listens for that, else 0.",
		}),
	}
	m.handoffEntries = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "godwit_agent_handoff_entries_total",
		Help: "What became of connections of VMs that migrate: on the target moved (not known before), replaced (of these, those learnt wrongly), renewed, refused; on the source left (the target was not told).",
	}, []string{"result"})
	m.handingOff = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "godwit_agent_handoff_enabled", Help: "1 if the agent hands the connections of VMs over that migrate, and takes them, else 0.",
	})
	for _, r := range handoffResults() {
		m.handoffEntries.WithLabelValues(r)
	}
	for _, e := range switchoverEvents() {
		m.switchovers.WithLabelValues(e)
	}
	for _, s := range []string{stageReady, stageIdentity, stageVeth, stageOVS, stageInstalled} {
		m.stages.WithLabelValues(s)
	}
	for _, s := range []side{sideSource, sideTarget} {
		m.observed.WithLabelValues(string(s))
	}
	for _, by := range []string{byVM, byAgent} {
		m.announcements.WithLabelValues(by)
	}
	for _, check := range []string{checkForward, checkConflist} {
		m.problems.WithLabelValues(check).Set(0)
	}
	for _, c := range []prometheus.Collector{m.stages, m.requests, m.ready, m.problems, m.observed, m.announcements, m.switchovers, m.signalling, m.handoffEntries, m.handingOff} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) stage(name string, took time.Duration) {
	m.stages.WithLabelValues(name).Observe(took.Seconds())
}

func (m *metrics) request(command string, err error, took time.Duration) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.requests.WithLabelValues(command, outcome).Observe(took.Seconds())
}

// scrapeTimeout bounds the reading of the local database for a scrape, the rows of which are in the client's cache, and a look at a daemon, for which no scrape waits (ovs.Look).
const scrapeTimeout = 2 * time.Second

// tell registers what is read when it is scraped, for as long as ctx lasts: it needs the connection to Open vSwitch.
func (a *Agent) tell(ctx context.Context) (stop func(), err error) {
	db := a.state.db
	collectors := []prometheus.Collector{
		&traffic{
			migrations: a.observer.migrations, log: a.log, counters: a.host.Counters,
			ports: func() ([]ovs.PortStatus, error) {
				ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
				defer cancel()
				return db.PodPorts(ctx)
			},
		},
		&tunnels{log: a.log, count: func() (all, failed int, err error) {
			ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
			defer cancel()
			return db.Tunnels(ctx)
		}},
	}
	return a.register(collectors...)
}

// tellDaemons registers what needs no connection to Open vSwitch's database.
func (a *Agent) tellDaemons(ctx context.Context) (stop func(), err error) {
	return a.register(newDaemons(ctx, a.log, filepath.Dir(strings.TrimPrefix(a.cfg.OVSEndpoint, "unix:")), a.cfg.OVNRunDir))
}

func (a *Agent) register(collectors ...prometheus.Collector) (undo func(), err error) {
	for _, c := range collectors {
		err = errors.Join(err, a.registry.Register(c))
	}
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return func() {
		for _, c := range collectors {
			a.registry.Unregister(c)
		}
	}, nil
}
