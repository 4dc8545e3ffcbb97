package agent

// Switch-over: a port is open on the target when the source has stopped the VM, and not only when the VM announces itself, so that what is sent to it meanwhile waits in its tap.
// In:   PortMigrations from and to this node; what the source's libvirt tells; what agents of other nodes say (pkg/peer).
// Out:  what is said to the agents of other nodes; RARP frames on the pod's side of a link; iface-id of a target's Interface, taken away when the VM goes on where it was.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/hypervisor"
	"github.com/godwit-cni/godwit/pkg/peer"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// What becomes of a signal.
const (
	// On the source: the target's agent was told; it was not; the hypervisor could not be asked.
	switchoverSignalled   = "signalled"
	switchoverUndelivered = "undelivered"
	switchoverUnheard     = "unheard"
	// On the target: a port was opened; somebody has no say; a port was taken away from OVN, for the VM goes on where it was; it was given back.
	switchoverOpened    = "opened"
	switchoverRefused   = "refused"
	switchoverWithdrawn = "withdrawn"
	switchoverRestored  = "restored"
)

func switchoverEvents() []string {
	return []string{switchoverSignalled, switchoverUndelivered, switchoverUnheard, switchoverOpened, switchoverRefused, switchoverWithdrawn, switchoverRestored}
}

const (
	// listenAgain is how often is looked whether the node has other addresses, and when to try again after one could not be listened on.
	listenAgain = 15 * time.Second
	// nodePoll is how often is looked for the node's addresses before they are known.
	nodePoll = 500 * time.Millisecond
	// openTimeout is for how long a port stays open on the signal when nothing is heard of the VM: what stops a VM longer has failed, and nobody has said so.
	openTimeout = 30 * time.Second
)

// switchover is what agents say to one another.
type switchover struct {
	log      *slog.Logger
	node     string
	port     int
	pods     string
	files    *pki.Files
	observer *observer
	// own are this node's addresses, addresses those of another.
	own       func() []netip.Addr
	addresses func(ctx context.Context, node string) ([]netip.Addr, error)
	// stops tells of a launcher's VM.
	stops  func(context.Context, hypervisor.Launcher) (<-chan hypervisor.Event, error)
	listen func(ctx context.Context, address string) (net.Listener, error)
	// handoff is nil if connections are not handed over.
	handoff *handoff
}

// addSwitchover: without it migrations go as they did before there was a signal.
func (a *Agent) addSwitchover(src Sources) {
	off := ""
	switch {
	case !a.cfg.Switchover:
		off = "--switchover=false"
	case a.cfg.certificateDir() == "":
		off = "the node has no certificate: --node-tls-dir, or --ovn-tls-dir"
	}
	if off != "" {
		a.log.Info("agents do not signal when a migration stops a VM: ports are open when the VM announces itself", "reason", off)
		return
	}
	a.switchover = &switchover{
		log: a.log, node: a.cfg.NodeName, port: a.cfg.SwitchoverPort, pods: a.cfg.PodsDir, files: pki.Dir(os.ReadFile, a.cfg.certificateDir()), observer: a.observer,
		own: func() []netip.Addr {
			if node := a.inputs.node(); node != nil {
				return internalIPs(node)
			}
			return nil
		},
		addresses: src.Addresses, stops: hypervisor.Watch,
		listen: func(ctx context.Context, address string) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, "tcp", address)
		},
	}
	a.observer.switchover = a.switchover
}

// errMoved is why it is listened anew at once: the node has other addresses.
var errMoved = errors.New("the node has other addresses")

// run listens for the agents of other nodes until ctx ends, on the addresses that the node has.
func (s *switchover) run(ctx context.Context) {
	s.observer.metrics.signalling.Set(1)
	for ctx.Err() == nil {
		again := nodePoll
		if own := s.own(); len(own) > 0 {
			again = listenAgain
			switch err := s.serve(ctx, own); {
			case err == nil || ctx.Err() != nil:
			case errors.Is(err, errMoved):
				again = 0
				s.log.Info("agents of other nodes are listened to on other addresses", "reason", err)
			default:
				s.log.Warn("agents of other nodes are not listened to: VMs that come here are open when they announce themselves", "error", err, "retry_in", listenAgain)
			}
		}
		pauseFor(ctx, again)
	}
}

// serve listens on these addresses until the node has others. A Node that is not known for a while, or says the same in another order, ends no connection.
func (s *switchover) serve(ctx context.Context, own []netip.Addr) error {
	g, ctx := errgroup.WithContext(ctx)
	server := &peer.Server{Files: s.files, Service: s, Log: s.log}
	missing := own
	listen := func() error {
		var errs []error
		var left []netip.Addr
		for _, ip := range missing {
			l, err := s.listen(ctx, net.JoinHostPort(ip.String(), strconv.Itoa(s.port)))
			if err != nil {
				left = append(left, ip)
				errs = append(errs, fmt.Errorf("listen on --switchover-port: %w: another process has the port, or the address is not the node's", err))
				continue
			}
			g.Go(func() error { return server.Serve(ctx, l) })
		}
		missing = left
		return errors.Join(errs...)
	}
	err := listen()
	switch {
	case len(missing) == len(own):
		return err
	case err != nil:
		s.log.Warn("agents of other nodes are not listened to on every address", "error", err, "retry_in", listenAgain)
	}
	g.Go(func() error {
		tick := time.NewTicker(listenAgain)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if now := s.own(); len(now) > 0 && !sameAddresses(now, own) {
				return fmt.Errorf("%w: %v, they were %v", errMoved, now, own)
			}
			if len(missing) > 0 && listen() == nil {
				s.log.Info("agents of other nodes are listened to on every address", "addresses", own)
			}
		}
	})
	return g.Wait()
}

// sameAddresses says whether two lists have the same addresses, in whatever order.
func sameAddresses(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// Admit implements peer.Service: a node has a say in the migrations that go from there to here, for as long as they are not over.
func (s *switchover) Admit(node string, m peer.Migration) (err error) {
	pm := s.observer.migrations.coming(m.Namespace, types.UID(m.UID))
	switch {
	case pm == nil:
		err = fmt.Errorf("node %s knows no migration %q in namespace %q that comes there", s.node, m.UID, m.Namespace)
	case pm.Spec.Source.Node != node || pm.Spec.Target.Node != s.node:
		err = fmt.Errorf("migration %s/%s goes from node %s to node %s: node %s has no say in it on node %s",
			m.Namespace, m.UID, pm.Spec.Source.Node, pm.Spec.Target.Node, node, s.node)
	case pm.Status.Over():
		err = fmt.Errorf("migration %s/%s is over", m.Namespace, m.UID)
	}
	if err != nil {
		s.observer.metrics.switchovers.WithLabelValues(switchoverRefused).Inc()
	}
	return err
}

// declined: the VM's owner wants no signal. It is asked of the pod that is on this node.
func (s *switchover) declined(pm *v1alpha1.PortMigration, here v1alpha1.MigrationEnd) bool {
	pod := s.observer.inputs.pod(pm.Namespace + "/" + here.Pod.Name)
	return pod != nil && pod.Annotations[v1alpha1.SwitchoverAnnotation] == "false"
}

// Handle implements peer.Service.
func (s *switchover) Handle(ctx context.Context, m peer.Migration, msg peer.Message) (peer.Reply, error) {
	pm := s.observer.migrations.coming(m.Namespace, types.UID(m.UID))
	var w *watch
	if pm != nil {
		w = s.observer.find(keyOn(sideTarget, pm))
	}
	if w == nil {
		return peer.Reply{}, errors.New("the migration's target pod has no link yet")
	}
	switch msg.Kind {
	case peer.Stopped:
		if s.declined(pm, pm.Spec.Target) {
			s.observer.metrics.switchovers.WithLabelValues(switchoverRefused).Inc()
			return peer.Reply{}, fmt.Errorf("the VM's annotation %s is \"false\"", v1alpha1.SwitchoverAnnotation)
		}
		return peer.Reply{}, w.openPorts(ctx, msg.Ports)
	case peer.Resumed:
		return peer.Reply{}, w.withdraw(ctx, msg.Ports)
	case peer.Connections:
		return s.handoff.take(ctx, w, msg)
	case peer.Alive:
		return peer.Reply{}, nil
	}
	return peer.Reply{}, fmt.Errorf("message of the kind %q: want %s, %s or %s", msg.Kind, peer.Stopped, peer.Resumed, peer.Connections)
}
