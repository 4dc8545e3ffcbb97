package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/raft"
)

const (
	// scrapeTimeout bounds the questions of a look at one daemon, for which no scrape waits (ovs.Look).
	scrapeTimeout = 2 * time.Second
	// readTimeout is how long a client may take to say what it wants.
	readTimeout = 5 * time.Second
)

// northdTasks are ovn-northd's tasks that grow with the cluster: a whole run, what becomes of the northbound database, logical flows, writing them.
var northdTasks = []string{"ovn-northd-loop", "ovnnb_db_run", "build_lflows", "lflows_to_sb"}

// Census is a prometheus.Collector: what the databases' members of this pod and ovn-northd say of themselves when it is scraped. What has no socket has no series, and none keeps a scrape waiting.
type Census struct {
	Config    Config
	Databases []Database
	Log       *slog.Logger
	// Context bounds all looks.
	Context context.Context //nolint:containedctx // a Collector is called without one

	once sync.Once
	// looks are one for each daemon: none keeps a scrape waiting.
	looks []*ovs.Look[[]prometheus.Metric]
}

func (c *Census) descs() map[string]*prometheus.Desc {
	database := []string{"database"}
	return map[string]*prometheus.Desc{
		"up":          prometheus.NewDesc("godwit_ovn_daemon_up", "1 if the daemon, which has a control socket, answers within two seconds, else 0.", []string{"daemon"}, nil),
		"time":        prometheus.NewDesc("godwit_ovn_task_seconds", "How long a daemon's task takes: max and p95 since it began, average over the last hundred or so runs.", []string{"daemon", "task", "statistic"}, nil),
		"samples":     prometheus.NewDesc("godwit_ovn_task_runs_total", "How often the daemon ran the task.", []string{"daemon", "task"}, nil),
		"active":      prometheus.NewDesc("godwit_ovn_northd_active", "1 if this ovn-northd is the one that works, 0 if it stands by.", nil, nil),
		"leader":      prometheus.NewDesc("godwit_ovn_raft_leader", "1 if this member leads the database's cluster, else 0.", database, nil),
		"known":       prometheus.NewDesc("godwit_ovn_raft_leader_known", "1 if this member belongs to the database's cluster and knows a leader, else 0.", database, nil),
		"term":        prometheus.NewDesc("godwit_ovn_raft_term", "Term of the database's cluster: it grows with each election.", database, nil),
		"log":         prometheus.NewDesc("godwit_ovn_raft_log_entries", "Entries of the database's log that are not in its snapshot yet.", database, nil),
		"uncommitted": prometheus.NewDesc("godwit_ovn_raft_uncommitted_entries", "Entries that most members do not have yet, as this one knows.", database, nil),
		"servers":     prometheus.NewDesc("godwit_ovn_raft_servers", "Members of the database's cluster, as this one knows.", database, nil),
		"lag":         prometheus.NewDesc("godwit_ovn_raft_member_lag_entries", "How many entries of the log a member is behind; the leader tells.", []string{"database", "server"}, nil),
		"silent":      prometheus.NewDesc("godwit_ovn_raft_member_silent_seconds", "For how long the leader has heard nothing of a member.", []string{"database", "server"}, nil),
		"file":        prometheus.NewDesc("godwit_ovn_database_file_bytes", "Size of the database's file.", database, nil),
		"room":        prometheus.NewDesc("godwit_ovn_database_disk_free_bytes", "Room on the disk of the database's file.", database, nil),
		"sessions":    prometheus.NewDesc("godwit_ovn_database_sessions", "Clients of this member.", database, nil),
		"cells":       prometheus.NewDesc("godwit_ovn_database_cells", "Cells of the database that this member holds in memory.", database, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *Census) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs() {
		to <- d
	}
}

// telling is one look at a daemon.
type telling struct {
	descs map[string]*prometheus.Desc
	told  []prometheus.Metric
}

func (s *telling) gauge(of string, value float64, labels ...string) {
	s.told = append(s.told, prometheus.MustNewConstMetric(s.descs[of], prometheus.GaugeValue, value, labels...))
}

// truth is how yes and no are told.
func truth() map[bool]float64 { return map[bool]float64{true: 1, false: 0} }

// look asks one daemon. What it does not say is left out, and the log says so once.
func (c *Census) look(daemon string, ask func(*telling) error) *ovs.Look[[]prometheus.Metric] {
	failing := false // one look is at work at a time
	return ovs.NewLook(func() []prometheus.Metric {
		s := &telling{descs: c.descs()}
		err := s.up(daemon, ask(s))
		if err != nil && !failing && c.Context.Err() == nil {
			c.Log.Warn("a daemon cannot be told of in full", "daemon", daemon, "error", err)
		}
		failing = err != nil
		return s.told
	})
}

// Collect implements prometheus.Collector.
func (c *Census) Collect(to chan<- prometheus.Metric) {
	c.once.Do(func() {
		for _, d := range c.Databases {
			c.looks = append(c.looks, c.look("ovsdb-server-"+d.Kind, func(s *telling) error { return c.database(s, d) }))
		}
		c.looks = append(c.looks, c.look("ovn-northd", c.northd))
	})
	var all sync.WaitGroup
	for _, l := range c.looks {
		all.Go(func() {
			told, _ := l.See() // nothing, where nothing was seen
			for _, m := range told {
				to <- m
			}
		})
	}
	all.Wait()
}

func (s *telling) up(daemon string, err error) error {
	if errors.Is(err, ovs.ErrNoSocket) {
		return nil
	}
	s.gauge("up", truth()[err == nil], daemon)
	return err
}

func (c *Census) database(s *telling, d Database) error {
	ctx, cancel := context.WithTimeout(c.Context, scrapeTimeout)
	defer cancel()
	said, err := ovs.Ask(ctx, d.Control, "cluster/status", d.Name)
	if disk := s.disk(d, err); disk != nil || err != nil {
		return errors.Join(err, disk)
	}
	st := parseStatus(said)
	s.gauge("leader", truth()[st.Leader], d.Kind)
	s.gauge("known", truth()[st.Member && st.Led], d.Kind)
	s.gauge("term", float64(st.Term), d.Kind)
	s.gauge("log", float64(st.End-st.First), d.Kind)
	s.gauge("uncommitted", float64(st.Uncommitted), d.Kind)
	s.gauge("servers", float64(len(st.servers)), d.Kind)
	if st.Leader {
		for host, one := range d.byHost(st.servers) {
			s.gauge("lag", float64(max(0, st.End-1-one.Match)), d.Kind, host)
			if one.Silent >= 0 {
				s.gauge("silent", one.Silent.Seconds(), d.Kind, host)
			}
		}
	}
	memory, err := ovs.Ask(ctx, d.Control, "memory/show")
	if err != nil {
		return err
	}
	uses := ovs.ParseMemory(memory)
	s.gauge("sessions", uses["sessions"], d.Kind)
	s.gauge("cells", uses["cells"], d.Kind)
	return nil
}

// disk tells of the file where there is a server, also of one that has given its database up.
func (s *telling) disk(d Database, asked error) error {
	if errors.Is(asked, ovs.ErrNoSocket) {
		return nil
	}
	info, err := os.Stat(d.File)
	if err != nil {
		return fmt.Errorf("the database's file: %w", err)
	}
	s.gauge("file", float64(info.Size()), d.Kind)
	free, _, err := d.room()
	if err != nil {
		return err
	}
	s.gauge("room", float64(free), d.Kind)
	return nil
}

// byHost are the members besides the one who was asked, by host. One that has come with an empty disk is beside its former self, at the same address, until that is removed: the one that was heard last is told, for a
// sample that is told twice is refused.
func (d Database) byHost(servers []raft.Server) map[string]raft.Server {
	out := map[string]raft.Server{}
	for _, one := range servers {
		host := d.member(one.Address)
		if has, twice := out[host]; !one.Self && (!twice || heardAfter(one, has)) {
			out[host] = one
		}
	}
	return out
}

// heardAfter: the leader has heard a after b; of two that it never heard a has more of the log.
func heardAfter(a, b raft.Server) bool {
	if a.Silent < 0 || b.Silent < 0 {
		return a.Silent >= 0 || b.Silent < 0 && a.Match > b.Match
	}
	return a.Silent < b.Silent
}

// member is the host of an address of raft, which may be a socket's (raftAddress); an address that is nobody's as it is, without protocol and port.
func (d Database) member(address string) string {
	for _, h := range d.Hosts {
		if d.raftAddress(h) == address {
			return h.String()
		}
	}
	_, rest, _ := strings.Cut(address, ":")
	h, _, err := net.SplitHostPort(rest)
	if err != nil {
		return address
	}
	return h
}

func (c *Census) northd(s *telling) error {
	ctx, cancel := context.WithTimeout(c.Context, scrapeTimeout)
	defer cancel()
	socket := c.Config.socket(ProbeNorthd)
	status, err := ovs.Ask(ctx, socket, "status")
	if err != nil {
		return err
	}
	s.gauge("active", truth()[strings.Contains(status, "active")])
	watches, err := ovs.Ask(ctx, socket, "stopwatch/show")
	if err != nil {
		return err
	}
	all := ovs.ParseStopwatches(watches)
	for _, task := range northdTasks {
		if w, ok := all[task]; ok {
			s.told = append(s.told, prometheus.MustNewConstMetric(s.descs["samples"], prometheus.CounterValue, w.Samples, "ovn-northd", task))
			s.gauge("time", w.Max, "ovn-northd", task, "max")
			s.gauge("time", w.P95, "ovn-northd", task, "p95")
			s.gauge("time", w.Average, "ovn-northd", task, "average")
		}
	}
	return nil
}

// Serve serves /metrics with what the census tells, until ctx ends.
func Serve(ctx context.Context, address string, census *Census) error {
	reg := prometheus.NewRegistry()
	if err := reg.Register(census); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on --metrics-address: %w: another process has the port, or the address is not the node's", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{ // a sample that cannot be told costs itself alone: alerts are made of the others
		MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(census.Log.Handler(), slog.LevelWarn), Registry: reg,
	}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, IdleTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
