package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// handoverGrace is short, for a test to see its end; watchedAfter is for how long connections are watched past it. Where the machine is busy those that make no progress, for longer than
	// underWay, are watched longer, but for no longer than watchedLongest.
	handoverGrace  = 20 * time.Second
	watchedAfter   = 15 * time.Second
	watchedLongest = time.Minute
	underWay       = 3 * time.Second
	// silence is how long a connection makes no progress before it is given up. What is judged is how long it stalled: a machine that is busy stops everybody for seconds.
	silence = 5 * time.Minute
	// keepalive is sooner than the VM's own first keepalive, 15 s, which brings a connection that stalls back: it is the VM that speaks.
	keepalive = 12 * time.Second
	// voyagesWithout is how many migrations without the handover are tried until a connection dies.
	voyagesWithout = 8
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
	scene := newScene(t, "policy-vm", 0)
	ns := namespace(t, nil)
	create(t, server(ns, "stranger", "node2"))
	setScene(t, scene)
	stranger := ready(t, ns, 1)["stranger"]
	s := &policyVM{Scene: scene, stranger: podPlace(t, stranger), strangerIP: stranger.IPs[0]}
	var pod corev1.Pod
	if err := cluster.api.Get(t.Context(), client.ObjectKey{Namespace: scene.Namespace, Name: "peer"}, &pod); err != nil {
		t.Fatal(err)
	}
	s.peer = podPlace(t, end(&pod))
	eventually(t, settleTimeout, func(ctx context.Context) error { // without a policy, or that it cannot with one says nothing
		return s.dial(ctx, s.stranger)
	})
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
	eventually(t, settleTimeout, func(ctx context.Context) error {
		if s.dial(ctx, s.stranger) == nil {
			return errors.New("the policy permits no stranger, and one connects to the VM")
		}
		return s.dial(ctx, s.peer)
	})
}

// dial opens a connection to the VM's echo port, and has something echoed.
func (s *policyVM) dial(ctx context.Context, from traffic.Place) error {
	ctx, cancel := context.WithTimeout(ctx, busy(time.Second)) // of one that is forbidden it is the whole of it that passes
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
		out, err := nbctl(ctx, "--bare", "--columns=ports", "find", "Port_Group", "name="+group+"_handover")
		if err != nil || !strings.Contains(out, row.UUID) {
			return false, err
		}
	}
	return true, nil
}

// A VM that is isolated both ways moves, and every connection that its policy permits goes on, past the end of the grace; nothing is admitted that it forbids. Without
// the handover a download that the VM has begun dies. VOYAGES=20 is so many migrations with the grace that is the default, each watched for a minute past its end.
func TestPolicyVMConnections(t *testing.T) {
	s := newPolicyVM(t)
	err := s.Serve(t.Context(), func(context.Context) error {
		t.Run("without handover", s.downloadDies)
		if voyagesWanted(t) == 0 {
			t.Run("with handover", s.allGoOn)
		} else {
			t.Run("voyages", s.manyVoyages)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	consistent(t)
}

func (s *policyVM) downloadDies(t *testing.T) {
	t.Helper()
	withFlags(t, "--handover-rules=false")
	// None does when the VM is the first to speak on each, which it is by chance: it owes an acknowledgement when it is stopped.
	for range voyagesWithout {
		v := s.voyage(t, func([]exchange) { time.Sleep(watchedAfter) }) // one that dies has stalled for longer than keepalive then
		if slices.ContainsFunc(v.connections, func(c carried) bool {
			return c.who == guests && c.Kind == traffic.Download && c.Stall.Length() > keepalive
		}) {
			return
		}
	}
	t.Errorf("in %d migrations without the handover no download by the VM stalled: what the test shows with it is nothing", voyagesWithout)
}

// watched is for how long to watch at most.
func watched() time.Duration { return min(patience(watchedAfter), watchedLongest) }

// watchOn watches connections after a move: what dies of it may die a while after it.
func watchOn(t *testing.T, window time.Duration, idle func(context.Context) (time.Duration, error)) {
	t.Helper()
	time.Sleep(watchedAfter)
	goOn(t, window-watchedAfter, idle)
}

// goOn waits until all connections make progress. One that is dead makes none until the end, one that waits for a busy machine, or to send again, does before.
func goOn(t *testing.T, window time.Duration, idle func(context.Context) (time.Duration, error)) {
	t.Helper()
	for end := time.Now().Add(window); time.Now().Before(end); {
		d, err := idle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d < underWay {
			return
		}
		time.Sleep(time.Second)
	}
}

func (s *policyVM) allGoOn(t *testing.T) {
	t.Helper()
	withFlags(t, "--handover-grace="+handoverGrace.String())
	window := watched()
	v := s.handover(t, handoverGrace, func(all []exchange) {
		watchOn(t, window, func(ctx context.Context) (time.Duration, error) { return idle(ctx, all) })
	})
	limit := window * 4 / 5 // one that has died has stalled for the whole window, one that waits for a busy machine, or to send again, has not
	for _, c := range v.connections {
		if c.lost(limit) {
			t.Errorf("%s; want it to go on, and no stall longer than %s", c, limit)
		}
	}
}

// handover is a voyage with its handover, watched past the end of the grace. A client is silent all along, and speaks again in the end.
func (s *policyVM) handover(t *testing.T, grace time.Duration, watch func([]exchange)) voyage {
	t.Helper()
	quiet, err := s.peer.Dial(t.Context(), "tcp", netip.AddrPortFrom(s.Guest.IPs[0], permittedEcho).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = quiet.Close() }()
	if err := echoed(quiet, patience(time.Second)); err != nil {
		t.Fatal(err)
	}
	var seen atomic.Bool
	go func() {
		for t.Context().Err() == nil && !seen.Load() {
			moves, err := s.movesAlong(t.Context())
			seen.Store(err == nil && moves)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	v := s.voyage(t, func(all []exchange) {
		if !seen.Load() {
			t.Error("the VM has arrived, and its port was not in the groups of those whose connections move along")
		}
		eventually(t, grace+20*time.Second, func(ctx context.Context) error {
			moves, err := s.movesAlong(ctx)
			if err == nil && moves {
				err = errors.New("the grace is over, and the VM's port is still in the group")
			}
			return err
		})
		watch(all)
	})
	if err := echoed(quiet, patience(2*time.Second)); err != nil {
		t.Errorf("a client that was silent meanwhile: %v", err)
	}
	return v
}
