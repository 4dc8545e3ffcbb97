package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// atomicInt is an int that the node's loop writes and attachments read.
type atomicInt struct{ v atomic.Int64 }

func (a *atomicInt) Load() int   { return int(a.v.Load()) }
func (a *atomicInt) Store(i int) { a.v.Store(int64(i)) }

// Registry is where metrics are registered and read from.
type Registry interface {
	prometheus.Registerer
	prometheus.Gatherer
}

// Agent is the process on a node.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	registry Registry
	ready    *readiness
	state    *nodeState
	host     hostNetwork
	inputs   *inputs
	loop     *nodeLoop
	attacher *attacher
	observer *observer
	// services is nil if somebody else serves Services.
	services *services
	heart    *heart
	// certifier is nil if nobody asks for a certificate, switchover if agents say nothing to one another.
	certifier  *certifier
	switchover *switchover
	// leftovers clears what belongs to no pod of the node.
	leftovers *leftovers
}

// New makes an agent of a configuration that Validate accepts. Nothing runs before Run.
func New(cfg Config, src Sources, to Writers, log *slog.Logger, reg Registry) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	datapath, err := chooseDatapath(cfg.Datapath)
	if err != nil {
		return nil, err
	}
	host := netdev.Host{Netns: cfg.HostNetns}
	a := &Agent{
		cfg: cfg, log: log, registry: reg, host: host,
		ready: newReadiness(compAPI, compOVS, compChassis, compGateway, compInstall),
		state: &nodeState{connected: make(chan struct{}), datapath: datapath},
	}
	a.loop = &nodeLoop{
		log: log, ready: a.ready, state: a.state, wake: make(chan struct{}, 1), installInterval: installInterval,
		chassis: &chassis{cfg: cfg, host: host, annotate: to.Annotate}, gateway: &gateway{cfg: cfg, host: host}, installer: &installer{cfg: cfg},
	}
	if a.inputs, err = newInputs(cfg.NodeName, src, a.nodeChanged); err != nil {
		return nil, err
	}
	a.loop.inputs = a.inputs
	if cfg.Services {
		if err := a.addServices(src, host); err != nil {
			return nil, err
		}
	}
	metrics, err := newMetrics(reg, func() bool { return a.ready.err() == nil })
	if err != nil {
		return nil, err
	}
	if err := a.addCertifier(to.Certificates); err != nil {
		return nil, err
	}
	a.observer = &observer{
		log: log, links: hostLinks{host}, inputs: a.inputs, node: a.state, report: to.Report, metrics: metrics, wake: make(chan struct{}, 1),
		watches: map[watchKey]*watch{},
	}
	if a.observer.migrations, err = newMigrations(src, a.observer.poke); err != nil {
		return nil, err
	}
	if err := a.observer.watchPods(); err != nil {
		return nil, err
	}
	a.addSwitchover(src)
	a.addHandoff(host)
	a.heart = &heart{
		cfg: cfg, log: log, inputs: a.inputs, ready: a.ready, renew: to.Renew, subnet: src.Subnet, wake: make(chan struct{}, 1),
		loans: &loans{now: time.Now, log: log, host: host, inputs: a.inputs, translated: a.loop.gateway.translates, announce: announcer(host), news: map[netdev.Borrowed]int{}},
	}
	a.loop.gateway.changed = a.heart.poke
	a.attacher = &attacher{cfg: cfg, log: log, host: host, inputs: a.inputs, ready: a.ready, node: a.state, metrics: metrics, observer: a.observer}
	a.leftovers = newLeftovers(a.attacher)
	return a, nil
}

// addCertifier: without ssl: remotes the certificate is for other agents alone, and pods do not wait for it.
func (a *Agent) addCertifier(from Certificates) (err error) {
	cfg, ready := a.cfg, newReadiness(compCertificate)
	if cfg.OVNTLSDir != "" {
		ready = a.ready
		a.ready.set(compCertificate, "starting")
	}
	if cfg.OVNTLSDir = cfg.certificateDir(); cfg.OVNTLSDir == "" {
		return nil
	}
	if a.certifier, err = newCertifier(cfg, a.log, from, a.registry); err != nil {
		return err
	}
	a.certifier.ready, a.certifier.renewed = ready, a.loop.poke
	return nil
}

func (a *Agent) addServices(src Sources, host netdev.Host) (err error) {
	if a.services, err = newServices(a.cfg.NodeName, src, a.inputs, host.NewBalancer(), listenOn(host.Do)); err != nil {
		return err
	}
	a.services.log = a.log
	a.services.metrics, err = newServiceMetrics(a.registry)
	return err
}

// nodeChanged: the Node or a Subnet has changed.
func (a *Agent) nodeChanged() {
	a.loop.poke()
	if a.services != nil {
		a.services.poke()
	}
}

// tableDeleted: somebody has deleted a table of nftables.
func (a *Agent) tableDeleted() {
	a.loop.gateway.forgetMasquerade()
	a.loop.poke()
	if a.services != nil {
		a.services.doubt()
	}
}

// removeServices removes what an agent that served Services has left.
func (a *Agent) removeServices(ctx context.Context) {
	if err := a.host.RemoveBalancer(ctx); err != nil {
		a.log.Warn("what an earlier agent left for Services is still there, and comes before what serves them now: nft delete table inet godwit-services", "error", err)
	}
}

// Run runs the agent until ctx ends or a part of it cannot go on. Pods keep their network either way.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info("starting", "node", a.cfg.NodeName, "datapath", a.state.datapath, "ovs", a.cfg.OVSEndpoint, "sb", a.cfg.SBRemote)
	a.preflight()
	cni, err := wire.Listen(ctx, a.cfg.CNISocket)
	if err != nil {
		return err
	}
	health, err := new(net.ListenConfig).Listen(ctx, "tcp", a.cfg.MetricsAddress)
	if err != nil {
		return fmt.Errorf("listen on --metrics-address: %w: another process has the port, or the address is not the node's", err)
	}
	db := make(chan *ovs.Client, 1)
	defer func() {
		select {
		case client := <-db:
			client.Close()
		default:
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { a.inputs.run(ctx); return nil })
	g.Go(func() error { a.observer.migrations.run(ctx); return nil })
	g.Go(func() error { return a.serveBoth(ctx, cni, health) })
	if a.certifier != nil {
		g.Go(func() error { a.certifier.run(ctx); return nil })
	}
	if a.switchover != nil {
		g.Go(func() error { a.switchover.run(ctx); return nil })
	}
	g.Go(func() error { return a.runNode(ctx, db) })
	g.Go(func() error { // without waiting for Open vSwitch: processes of the node have use for the API server's Service before
		if a.services == nil {
			a.removeServices(ctx)
			return nil
		}
		return a.services.run(ctx)
	})
	err = g.Wait()
	a.log.Info("stopped; pods keep their network", "error", err)
	return err
}

// preflight reports what is wrong with the node. The agent starts all the same: much may work.
func (a *Agent) preflight() {
	problems, err := preflight(a.cfg, a.host)
	if err != nil {
		a.log.Warn("not all of the pre-flight checks could be made", "error", err)
	}
	for _, p := range problems {
		a.log.Warn("pre-flight: "+p.what, "check", p.check, "remedy", p.remedy)
		a.attacher.metrics.problems.WithLabelValues(p.check).Inc()
	}
}

func (a *Agent) serveBoth(ctx context.Context, cni, health net.Listener) error {
	g, gctx := errgroup.WithContext(ctx)
	for srv, l := range map[*http.Server]net.Listener{
		wire.NewServer(ctx, a.log, a.attacher.handle): cni, healthServer(a.ready, a.registry, a.log): limit(health, a.log),
	} {
		g.Go(func() error { return serve(gctx, a.log, srv, l) })
	}
	return g.Wait()
}

// runNode connects to Open vSwitch, waits for the API, clears what a crash left, and runs the node's loop. The client goes to db: requests in
// progress need it to undo themselves after ctx has ended.
func (a *Agent) runNode(ctx context.Context, db chan<- *ovs.Client) error {
	a.ready.set(compOVS, "database "+a.cfg.OVSEndpoint+" is not reachable: is ovsdb-server running?")
	a.ready.set(compAPI, "the API server has not answered: is it reachable from this node?")
	endDaemons, err := a.tellDaemons(ctx)
	if err != nil {
		return err
	}
	defer endDaemons()
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: a.cfg.OVSEndpoint, Logger: a.log})
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to end before it connected
		}
		return err
	}
	db <- client
	a.state.db = client
	close(a.state.connected)
	a.ready.set(compOVS, "")
	silence, err := a.tell(ctx)
	if err != nil {
		return err
	}
	defer silence()
	if err := a.attacher.removeStale(ctx); err != nil {
		a.log.Warn("leftover attachments could not be removed; the next start tries again", "error", err)
	}
	if !a.inputs.synced(ctx) {
		return nil
	}
	a.ready.set(compAPI, "")
	client.OnConfigChange(a.loop.poke)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.host.Watch(ctx, netdev.Events{Changed: a.loop.poke, TableDeleted: a.tableDeleted})
	})
	g.Go(func() error { return a.loop.run(ctx) })
	g.Go(func() error { a.watchDatabase(ctx, client); return nil })
	g.Go(func() error { a.heart.run(ctx); return nil })
	g.Go(func() error { return a.observer.run(ctx) })
	g.Go(func() error { a.leftovers.run(ctx); return nil })
	return g.Wait()
}

// databasePoll is how often the node's database is asked whether it is there: a pod's attachment needs it.
const databasePoll = time.Second

// watchDatabase keeps true what is said of Open vSwitch's database: one that has ended, or hangs, attaches no pod.
func (a *Agent) watchDatabase(ctx context.Context, db *ovs.Client) {
	tick := time.NewTicker(databasePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		reason := ""
		if err := db.Ping(ctx); err != nil {
			reason = err.Error()
		}
		if ctx.Err() == nil {
			a.ready.set(compOVS, reason)
		}
	}
}
