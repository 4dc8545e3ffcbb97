package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/ovs"
)

// The node's daemons of OVN and Open vSwitch, as labels name them.
const (
	daemonController = "ovn-controller"
	daemonSwitch     = "ovs-vswitchd"
)

// What is told of the daemons, of all that they say: enough to see that one is slow, and why. The names are those of OVN 23.03 to 26.03 and Open vSwitch 3.1 to 3.7.
var (
	// controllerTasks are ovn-controller's tasks that grow with the cluster: a whole run, writing flows, packets for its own thread.
	controllerTasks = []string{"flow-generation", "flow-installation", "pinctrl-run"}
	// controllerNodes are nodes of its incremental engine by the names that 23.03 and newer ones give them: what is bound here, flows of logical switches and routers, flows of
	// tunnels and interfaces.
	controllerNodes = map[string][]string{
		"bindings": {"runtime_data"}, "logical_flows": {"logical_flow_output", "lflow_output"}, "physical_flows": {"physical_flow_output", "pflow_output"},
	}
	// switchEvents are what ovs-vswitchd counts that says of trouble: packets that were dropped for want of something, flows that did not fit, configuration that was done again.
	switchEvents = []string{
		"drop_action_of_pipeline", "drop_action_recursion_too_deep", "drop_action_too_many_resubmit", "datapath_drop_upcall_error", "datapath_drop_lock_error",
		"datapath_drop_userspace_action_error", "datapath_drop_tunnel_push_error", "datapath_drop_tunnel_pop_error", "datapath_drop_recirc_error", "datapath_drop_invalid_port",
		"handler_duplicate_upcall", "upcall_flow_limit_hit", "bridge_reconfigure", "xlate_actions", "rconn_overflow", "txn_error",
	}
	// switchMemory is what takes ovs-vswitchd's memory.
	switchMemory = []string{"rules", "udpif keys", "ports", "ofconns"}
)

// daemons tells what ovn-controller and ovs-vswitchd say of themselves, by their control sockets when it is scraped. A daemon that has no socket has no series; one that has and does
// not answer in time has one, godwit_ovn_daemon_up. Neither keeps a scrape waiting.
type daemons struct {
	// switchDir and ovnDir have the sockets.
	switchDir, ovnDir string
	log               *slog.Logger
	// looks are one for each daemon.
	looks []*ovs.Look[[]prometheus.Metric]
	// ctx is the agent's, which a scrape has none of.
	ctx context.Context //nolint:containedctx // a Collector is called without one
}

func newDaemons(ctx context.Context, log *slog.Logger, switchDir, ovnDir string) *daemons {
	d := &daemons{ctx: ctx, log: log, switchDir: switchDir, ovnDir: ovnDir}
	for name, ask := range map[string]func(*scrape) error{daemonController: d.controller, daemonSwitch: d.vswitchd} {
		d.looks = append(d.looks, d.look(name, ask))
	}
	return d
}

// look asks one daemon. What it does not say is left out, and the log says so once.
func (d *daemons) look(name string, ask func(*scrape) error) *ovs.Look[[]prometheus.Metric] {
	failing := false // one look is at work at a time
	return ovs.NewLook(func() []prometheus.Metric {
		s := &scrape{descs: d.descs()}
		err := s.up(name, ask(s))
		if err != nil && !failing && d.ctx.Err() == nil {
			d.log.Warn("a daemon of the node cannot be told of in full", "daemon", name, "error", err)
		}
		failing = err != nil
		return s.told
	})
}

func (d *daemons) descs() map[string]*prometheus.Desc {
	return map[string]*prometheus.Desc{
		"up":        prometheus.NewDesc("godwit_ovn_daemon_up", "1 if the daemon, which has a control socket, answers within two seconds, else 0.", []string{"daemon"}, nil),
		"connected": prometheus.NewDesc("godwit_ovn_controller_connected", "1 if ovn-controller is connected to the southbound database, else 0.", nil, nil),
		"runs":      prometheus.NewDesc("godwit_ovn_controller_engine_runs_total", "Runs of nodes of ovn-controller's incremental engine: recomputed anew, computed from what had changed, canceled.", []string{"node", "run"}, nil),
		"time":      prometheus.NewDesc("godwit_ovn_task_seconds", "How long a daemon's task takes: max and p95 since it began, average over the last hundred or so runs.", []string{"daemon", "task", "statistic"}, nil),
		"samples":   prometheus.NewDesc("godwit_ovn_task_runs_total", "How often the daemon ran the task.", []string{"daemon", "task"}, nil),
		"flows":     prometheus.NewDesc("godwit_ovs_flows", "OpenFlow flows of the integration bridge.", nil, nil),
		"packets":   prometheus.NewDesc("godwit_ovs_datapath_packets_total", "Packets that the datapath looked a flow up for: hit, missed (ovs-vswitchd was asked), lost (it had no time).", []string{"datapath", "result"}, nil),
		"dpflows":   prometheus.NewDesc("godwit_ovs_datapath_flows", "Flows of the datapath.", []string{"datapath"}, nil),
		"limit":     prometheus.NewDesc("godwit_ovs_datapath_flow_limit", "Flows that ovs-vswitchd allows the datapath now; less when a look at all of them takes long.", []string{"datapath"}, nil),
		"dump":      prometheus.NewDesc("godwit_ovs_datapath_dump_seconds", "How long the last look at all flows of the datapath took.", []string{"datapath"}, nil),
		"memory":    prometheus.NewDesc("godwit_ovs_memory_objects", "How many there are of what takes ovs-vswitchd's memory.", []string{"kind"}, nil),
		"events":    prometheus.NewDesc("godwit_ovs_events_total", "Events that ovs-vswitchd has counted since it began.", []string{"event"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (d *daemons) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range d.descs() {
		to <- desc
	}
}

// scrape is one look at a daemon.
type scrape struct {
	descs map[string]*prometheus.Desc
	told  []prometheus.Metric
}

func (s *scrape) gauge(of string, value float64, labels ...string) {
	s.told = append(s.told, prometheus.MustNewConstMetric(s.descs[of], prometheus.GaugeValue, value, labels...))
}

func (s *scrape) counter(of string, value float64, labels ...string) {
	s.told = append(s.told, prometheus.MustNewConstMetric(s.descs[of], prometheus.CounterValue, value, labels...))
}

// Collect implements prometheus.Collector.
func (d *daemons) Collect(to chan<- prometheus.Metric) {
	var all sync.WaitGroup
	for _, l := range d.looks {
		all.Go(func() {
			told, _ := l.See() // nothing, where nothing was seen
			for _, m := range told {
				to <- m
			}
		})
	}
	all.Wait()
}

// up tells whether a daemon answered; what has no socket is not there, which is no error.
func (s *scrape) up(daemon string, err error) error {
	switch {
	case errors.Is(err, ovs.ErrNoSocket):
		return nil
	case err != nil:
		s.gauge("up", 0, daemon)
	default:
		s.gauge("up", 1, daemon)
	}
	return err
}

// asker asks one daemon, all questions of a look within a time.
func (d *daemons) asker(dir, daemon string) (ask func(command string, arguments ...string) (string, error), cancel context.CancelFunc) {
	ctx, cancel := context.WithTimeout(d.ctx, scrapeTimeout)
	return func(command string, arguments ...string) (string, error) {
		return ovs.Ask(ctx, filepath.Join(dir, daemon+"*.ctl"), command, arguments...)
	}, cancel
}

func (d *daemons) controller(s *scrape) error {
	ask, cancel := d.asker(d.ovnDir, daemonController)
	defer cancel()
	status, err := ask("connection-status")
	if err != nil {
		return err
	}
	connected := 0.0
	if strings.TrimSpace(status) == "connected" {
		connected = 1
	}
	s.gauge("connected", connected)
	watches, err := ask("stopwatch/show")
	if err != nil {
		return err
	}
	all := ovs.ParseStopwatches(watches)
	for _, task := range controllerTasks {
		if w, ok := all[task]; ok {
			s.counter("samples", w.Samples, daemonController, task)
			s.gauge("time", w.Max, daemonController, task, "max")
			s.gauge("time", w.P95, daemonController, task, "p95")
			s.gauge("time", w.Average, daemonController, task, "average")
		}
	}
	stats, err := ask("inc-engine/show-stats")
	if err != nil {
		return err
	}
	engine := ovs.ParseEngine(stats)
	for node, names := range controllerNodes {
		for _, name := range names {
			if r, ok := engine[name]; ok {
				s.counter("runs", r.Recomputed, node, "recomputed")
				s.counter("runs", r.Computed, node, "computed")
				s.counter("runs", r.Canceled, node, "canceled")
				break
			}
		}
	}
	return nil
}

func (d *daemons) vswitchd(s *scrape) error {
	ask, cancel := d.asker(d.switchDir, daemonSwitch)
	defer cancel()
	shown, err := ask("dpctl/show")
	if err != nil {
		return err
	}
	for _, p := range ovs.ParseDatapaths(shown) {
		s.counter("packets", p.Hit, p.Name, "hit")
		s.counter("packets", p.Missed, p.Name, "missed")
		s.counter("packets", p.Lost, p.Name, "lost")
		s.gauge("dpflows", p.Flows, p.Name)
	}
	upcalls, err := ask("upcall/show")
	if err != nil {
		return err
	}
	for name, c := range ovs.ParseUpcalls(upcalls) {
		s.gauge("limit", c.Limit, name)
		s.gauge("dump", c.Dump, name)
	}
	memory, err := ask("memory/show")
	if err != nil {
		return err
	}
	uses := ovs.ParseMemory(memory)
	for _, kind := range switchMemory {
		s.gauge("memory", uses[kind], strings.ReplaceAll(kind, " ", "_"))
	}
	counted, err := ask("coverage/show")
	if err != nil {
		return err
	}
	events := ovs.ParseCoverage(counted)
	for _, e := range switchEvents {
		s.counter("events", events[e], e)
	}
	ctx, cancelCount := context.WithTimeout(d.ctx, scrapeTimeout)
	defer cancelCount()
	flows, err := ovs.FlowCount(ctx, d.switchDir)
	if err == nil {
		s.gauge("flows", float64(flows))
	}
	return err
}
