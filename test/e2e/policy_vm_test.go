package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// handoverGrace is short, for a test to see its end; watchedAfter is for how long connections are watched past it.
	handoverGrace = 20 * time.Second
	watchedAfter  = 15 * time.Second
	// silence is how long a connection makes no progress before it counts as dead. A machine that is busy stops a guest for seconds.
	silence = 20 * time.Second
	// keepalive is sooner than the VM's own first keepalive, 15 s, which brings a connection that stalls back: it is the VM that speaks.
	keepalive = 12 * time.Second
	// permittedEcho and the others are the traffic's: the VM and its peer may open connections to it, both ways, and to nothing else.
	permittedEcho, permittedSink, permittedSource = 7, 9, 19
)

// policyVM is a VM and its peer, isolated in both directions, and a pod that may not connect to them.
type policyVM struct {
	*passage.Scene
	peer, stranger traffic.Place
	strangerIP     netip.Addr
}

func newPolicyVM(t *testing.T) *policyVM {
	t.Helper()
	scene, err := passage.New(t.Context(), passage.Config{Lab: cluster.Lab, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Name: "policy-vm"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := scene.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	ns := namespace(t, nil)
	create(t, server(ns, "stranger", "node2"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := scene.Set(ctx); err != nil {
		t.Fatal(err)
	}
	stranger := ready(t, ns, 1)["stranger"]
	s := &policyVM{Scene: scene, stranger: podPlace(t, stranger), strangerIP: stranger.IPs[0]}
	var pod corev1.Pod
	if err := cluster.api.Get(ctx, client.ObjectKey{Namespace: scene.Namespace, Name: "peer"}, &pod); err != nil {
		t.Fatal(err)
	}
	s.peer = podPlace(t, end(&pod))
	if err := s.dial(ctx, s.stranger); err != nil {
		t.Fatalf("without a policy a stranger cannot connect to the VM, so that it cannot with one says nothing: %v", err)
	}
	s.isolate(t)
	return s
}

// isolate lets the VM and its peer connect to the traffic's ports of each other, and to nothing else, and nobody else to them.
func (s *policyVM) isolate(t *testing.T) {
	t.Helper()
	ports := []nport{tcp(permittedEcho), tcp(permittedSink), tcp(permittedSource), tcp(traffic.ControlPort)}
	np := ingressPolicy(s.Namespace, labelled(), from(ports, podsPeer(labelled())))
	np.Spec.PolicyTypes = []networkingv1.PolicyType{typeIngress, typeEgress}
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{to(ports, podsPeer(labelled()))}
	if err := cluster.api.Create(t.Context(), np); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience(settleTimeout), func(ctx context.Context) error {
		if s.dial(ctx, s.stranger) == nil {
			return errors.New("the policy permits no stranger, and one connects to the VM")
		}
		return s.dial(ctx, s.peer)
	})
}

// dial opens a connection to the VM's echo port, and has something echoed.
func (s *policyVM) dial(ctx context.Context, from traffic.Place) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(s.Guest.IPs[0], permittedEcho).String())
	if err != nil {
		return err
	}
	return errors.Join(echoed(conn, patience(time.Second)), conn.Close())
}

// echoed has something echoed.
func echoed(conn net.Conn, within time.Duration) error {
	const word = "godwit"
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
		return fmt.Errorf("%q came back, want %q: %w", got, word, err)
	}
	return nil
}

// withFlags restarts the controllers with more flags, until the test ends.
func withFlags(t *testing.T, flags ...string) {
	t.Helper()
	var d appsv1.Deployment
	key := client.ObjectKey{Namespace: lab.Namespace, Name: "godwit-controller"}
	set := func(ctx context.Context, args []string) error {
		patch, err := json.Marshal([]map[string]any{{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}})
		if err != nil {
			return err
		}
		return cluster.api.Patch(ctx, &d, client.RawPatch(types.JSONPatchType, patch))
	}
	rolled := func() {
		eventually(t, 3*time.Minute, func(ctx context.Context) error {
			var pods corev1.PodList
			if err := cluster.api.Get(ctx, key, &d); err != nil {
				return err
			}
			if err := cluster.api.List(ctx, &pods, client.InNamespace(key.Namespace), client.MatchingLabels(d.Spec.Selector.MatchLabels)); err != nil {
				return err
			}
			if st, want := d.Status, *d.Spec.Replicas; st.ObservedGeneration != d.Generation || st.UpdatedReplicas != want || st.AvailableReplicas != want || len(pods.Items) != int(want) {
				return fmt.Errorf("the controllers are not replaced: %+v, %d pods", st, len(pods.Items))
			}
			return nil
		})
	}
	if err := cluster.api.Get(t.Context(), key, &d); err != nil {
		t.Fatal(err)
	}
	before := d.Spec.Template.Spec.Containers[0].Args
	t.Cleanup(func() {
		if err := set(context.WithoutCancel(t.Context()), before); err != nil {
			t.Errorf("give the controllers their flags back: %v", err)
		}
	})
	if err := set(t.Context(), append(slices.Clone(before), flags...)); err != nil {
		t.Fatal(err)
	}
	rolled()
}

// movesAlong says whether the VM's port is in the groups of those whose connections move along.
func (s *policyVM) movesAlong(ctx context.Context) (bool, error) {
	row, err := cluster.nb.Port(ctx, ident.VMPort(s.Namespace, s.VM.Name, ident.DefaultNetwork))
	if err != nil || row == nil {
		return false, fmt.Errorf("the row of VM %s: %v, %w", s.VM, row, err)
	}
	for _, group := range []string{policy.IngressGroup, policy.EgressGroup} {
		out, err := cluster.Exec(ctx, "hub", "ovn-nbctl", "--db="+cluster.NB(), "--bare", "--columns=ports", "find", "Port_Group", "name="+group+"_handover")
		if err != nil || !strings.Contains(out, row.UUID) {
			return false, err
		}
	}
	return true, nil
}

// intrude tries what is forbidden over and over until ctx ends, and counts tries and successes: TCP from a stranger, and UDP from the peer.
func (s *policyVM) intrude(ctx context.Context) (tried, admitted *atomic.Int64, done <-chan struct{}) {
	tried, admitted = &atomic.Int64{}, &atomic.Int64{}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for ctx.Err() == nil {
			tried.Add(1)
			if s.dial(ctx, s.stranger) == nil {
				admitted.Add(1)
			}
			if s.datagram(ctx) == nil {
				admitted.Add(1)
			}
		}
	}()
	return tried, admitted, finished
}

// datagram sends one to the VM's UDP echo port, and waits for it to come back.
func (s *policyVM) datagram(ctx context.Context) error {
	conn, err := s.peer.Dial(ctx, "udp", netip.AddrPortFrom(s.Guest.IPs[0], permittedEcho).String())
	if err != nil {
		return err
	}
	return errors.Join(echoed(conn, 200*time.Millisecond), conn.Close())
}

// reachesNobodyElse lets the VM connect to whom it may not.
func (s *policyVM) reachesNobodyElse(ctx context.Context, t *testing.T) {
	t.Helper()
	spec := traffic.Spec{Peers: []netip.Addr{s.strangerIP}, Echo: traffic.Echoing{Connections: 1}, Length: traffic.Duration{Duration: time.Minute}}
	id, err := s.Guest.Ask.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // in which it would have connected a hundred times
	result, err := s.Guest.Ask.Stop(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if open, _ := result.Open(); open > 0 {
		t.Errorf("the VM has connected to %s, which its policy forbids", s.strangerIP)
	}
}

// voyageTraffic is a few connections of each kind each way. More downloads than others: they are what suffers.
func voyageTraffic() traffic.Spec {
	spec := passage.Holding(10 * time.Minute)
	spec.Echo.Connections, spec.Upload.Connections, spec.Download.Connections = 2, 2, 4
	spec.Upload.Rate, spec.Download.Rate = 50_000, 50_000
	spec.Silence.Duration = silence
	return spec
}

// trickle are downloads of a byte a second. Their receiver has acknowledged everything nearly all the time, so that the first that the target sees of one is the
// server's segment.
func trickle() traffic.Spec {
	spec := passage.Holding(10 * time.Minute)
	spec.Echo, spec.Upload, spec.Download = traffic.Echoing{}, traffic.Bulk{}, traffic.Bulk{Connections: 4, Rate: 1}
	spec.Silence.Duration = silence
	return spec
}

// carried are connections and who opened them.
type carried struct {
	traffic.Connection
	who string
}

func (c carried) String() string {
	text := fmt.Sprintf("%s, %s to %s: %d bytes, longest stall %s", c.who, c.Kind, c.Peer, c.Bytes, c.Stall.Length().Round(time.Millisecond))
	if c.Broken != "" {
		text += fmt.Sprintf(", broken: %s, %s", c.Broken, c.Error)
	}
	return text
}

const (
	peers  = "the peer's"
	guests = "the VM's"
)

func carriedBy(ctx context.Context, t *testing.T, exchanges []*passage.Exchange) (out []carried) {
	t.Helper()
	for _, x := range exchanges {
		to, from, err := x.Stop(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range to.Result.Connections {
			out = append(out, carried{c, peers})
		}
		for _, c := range from.Result.Connections {
			out = append(out, carried{c, guests})
		}
	}
	for _, c := range out {
		t.Log(c)
	}
	return out
}

// voyage moves the VM under traffic and intruders, and returns the connections when afterwards has returned.
func (s *policyVM) voyage(ctx context.Context, t *testing.T, afterwards func(context.Context)) ([]carried, lab.Stop) {
	t.Helper()
	var exchanges []*passage.Exchange
	for _, spec := range []traffic.Spec{voyageTraffic(), trickle()} {
		x, err := s.Exchange(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		exchanges = append(exchanges, x)
	}
	state, err := s.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	target := s.Target
	if state.Node == target {
		target = s.Source
	}
	intruding, rest := context.WithCancel(ctx)
	defer rest()
	tried, admitted, rested := s.intrude(intruding)
	g, err := s.VM.Migrate(ctx, lab.MigrateOptions{To: target})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		t.Fatal(err)
	}
	s.reachesNobodyElse(ctx, t)
	afterwards(ctx)
	rest()
	<-rested
	if admitted.Load() > 0 || tried.Load() < 3 {
		t.Errorf("of %d forbidden connections %d were admitted", tried.Load(), admitted.Load())
	}
	stop, err := g.QEMU(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("from %s to %s: QEMU had stopped the VM for %s; %d forbidden connections were tried", state.Node, target, stop.Duration(), tried.Load())
	return carriedBy(ctx, t, exchanges), stop
}

// A VM that is isolated both ways moves, and every connection that its policy permits goes on, past the end of the grace; nothing is admitted that it forbids. Without
// the handover a download that the VM has begun dies.
func TestPolicyVMConnections(t *testing.T) {
	s := newPolicyVM(t)
	err := s.Serve(t.Context(), func(ctx context.Context) error {
		t.Run("without handover", func(t *testing.T) { s.downloadDies(ctx, t) })
		t.Run("with handover", func(t *testing.T) { s.allGoOn(ctx, t) })
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	consistent(t)
}

func (s *policyVM) downloadDies(ctx context.Context, t *testing.T) {
	withFlags(t, "--handover-rules=false")
	connections, _ := s.voyage(ctx, t, func(context.Context) { time.Sleep(silence + 5*time.Second) })
	if !slices.ContainsFunc(connections, func(c carried) bool {
		return c.who == guests && c.Kind == traffic.Download && c.Stall.Length() > keepalive
	}) {
		t.Error("without the handover no download by the VM stalled: what the test shows with it is nothing")
	}
}

func (s *policyVM) allGoOn(ctx context.Context, t *testing.T) {
	withFlags(t, "--handover-grace="+handoverGrace.String())
	quiet, err := s.peer.Dial(ctx, "tcp", netip.AddrPortFrom(s.Guest.IPs[0], permittedEcho).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = quiet.Close() }()
	if err := echoed(quiet, patience(time.Second)); err != nil {
		t.Fatal(err)
	}
	connections, stop := s.voyage(ctx, t, func(ctx context.Context) {
		if moves, err := s.movesAlong(ctx); err != nil || !moves {
			t.Errorf("the VM has just arrived, its connections move along: %t (%v)", moves, err)
		}
		eventually(t, handoverGrace+20*time.Second, func(ctx context.Context) error {
			moves, err := s.movesAlong(ctx)
			if err == nil && moves {
				err = errors.New("the grace is over, and the VM's port is still in the group")
			}
			return err
		})
		time.Sleep(watchedAfter)
	})
	// TCP tries again after twice the time that it has waited last.
	limit := 2*stop.Duration() + patience(longestGap)
	for _, c := range connections {
		if c.Broken != "" || c.Bytes == 0 || c.Stall.Length() > limit {
			t.Errorf("%s; want it to go on, and no stall longer than %s", c, limit)
		}
	}
	if err := echoed(quiet, patience(2*time.Second)); err != nil {
		t.Errorf("a client that was silent meanwhile: %v", err)
	}
}
