package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/hypervisor"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/peer"
	"github.com/godwit-cni/godwit/pkg/pki"
)

var (
	moving  = peer.Migration{Namespace: "ns", UID: "m-uid"}
	stopped = peer.Message{Kind: peer.Stopped, Ports: []string{string(ident.VMPort("ns", "vm", "default"))}}
	resumed = peer.Message{Kind: peer.Resumed, Ports: stopped.Ports}
)

// listening gives the observer ears: of node "one", without a network.
func (w *watched) listening(t *testing.T) *switchover {
	t.Helper()
	s := &switchover{log: slog.New(slog.NewTextHandler(t.Output(), nil)), node: "one", observer: w.observer}
	w.observer.switchover = s
	return s
}

// opened is a target whose port was opened on the signal.
func opened(t *testing.T) (w *watched, s *switchover, c *fakeCapture) {
	t.Helper()
	w = newWatched(t)
	s = w.listening(t)
	w.records.add(w.pm)
	w.watching(t)
	c = w.links.capture(t, w.target(t))
	eventually(t, "signal", func() error {
		return errors.Join(s.Admit("zero", moving), told(s.Handle(t.Context(), moving, stopped)))
	})
	return w, s, c
}

func told(_ peer.Reply, err error) error { return err }

func TestSwitchoverOpensThePort(t *testing.T) {
	w, s, c := opened(t)
	if _, err := s.Handle(t.Context(), moving, stopped); err != nil {
		t.Fatal(err)
	}
	if n := w.links.openings(); n != 1 {
		t.Errorf("%d RARPs after two signals, want 1", n)
	}
	w.links.mu.Lock()
	w.links.delivered = 7
	w.links.mu.Unlock()
	first := time.Now()
	c.frames <- frame.Seen{At: at(first, 0)}
	c.frames <- frame.Seen{At: at(first, time.Millisecond), RARP: true}
	got := w.records.reported(t, w.pm, sideTarget)
	wantTime(t, "announcement", got.Announced, at(first, time.Millisecond))
	wantTime(t, "first frame", got.FirstFrame, at(first, 0))
	if got.ActivatedBy != v1alpha1.ActivatedBySignal || got.Opened == nil || got.FramesQueued == nil || *got.FramesQueued != 7 || got.FramesBeforeAnnouncement != 0 || got.AnnouncedByAgent {
		t.Errorf("reported %+v, want the signal, 7 frames that waited, and none dropped", got)
	}
}

// What a port is opened by is there before the signal: nothing is left to do then that would have to wait for a processor.
func TestSwitchoverIsPrepared(t *testing.T) {
	w := newWatched(t)
	s := w.listening(t)
	w.records.add(w.pm)
	w.watching(t)
	w.links.capture(t, w.target(t))
	voices := func(want int) {
		t.Helper()
		eventually(t, "senders", func() error {
			w.links.mu.Lock()
			defer w.links.mu.Unlock()
			if w.links.voices != want {
				return fmt.Errorf("%d are open, want %d", w.links.voices, want)
			}
			return nil
		})
	}
	voices(1)
	w.links.mu.Lock()
	w.links.fail = errors.New("no time for that")
	w.links.mu.Unlock()
	eventually(t, "signal", func() error { return told(s.Handle(t.Context(), moving, stopped)) })
	if n := w.links.openings(); n != 1 {
		t.Errorf("%d RARPs after the signal, want 1", n)
	}
	w.stop()
	voices(0)
}

func TestSwitchoverWhoHasASay(t *testing.T) {
	w := newWatched(t)
	s := w.listening(t)
	w.records.add(w.pm)
	w.watching(t)
	for name, c := range map[string]struct {
		node string
		m    peer.Migration
		says string
	}{
		"another node":      {"two", moving, "node two has no say"},
		"the target itself": {"one", moving, "node one has no say"},
		"another migration": {"zero", peer.Migration{Namespace: "ns", UID: "other"}, "knows no migration"},
		"another namespace": {"zero", peer.Migration{Namespace: "elsewhere", UID: "m-uid"}, "knows no migration"},
	} {
		if err := s.Admit(c.node, c.m); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want that %s", name, err, c.says)
		}
	}
	if err := s.Admit("zero", moving); err != nil {
		t.Errorf("the source: %v", err)
	}
	if _, err := s.Handle(t.Context(), moving, stopped); err == nil || w.links.openings() != 0 {
		t.Errorf("a target without a link: %v, want an error", err)
	}
	w.target(t)
	for name, msg := range map[string]peer.Message{
		"another port": {Kind: peer.Stopped, Ports: []string{string(ident.VMPort("ns", "other", "default"))}}, "no port": {Kind: peer.Stopped}, "another kind": {Kind: "begun", Ports: stopped.Ports},
	} {
		if _, err := s.Handle(t.Context(), moving, msg); err == nil || w.links.openings() != 0 {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationFailed })
	eventually(t, "the migration's end", func() error {
		if s.Admit("zero", moving) == nil {
			return errors.New("the source has a say still")
		}
		return nil
	})
}

// isWithdrawn says whether OVN is told of the target's port.
func (w *watched) isWithdrawn(t *testing.T) bool {
	t.Helper()
	ports, err := w.node.PodPorts(t.Context())
	if err != nil || len(ports) != 1 {
		t.Fatalf("%d ports (%v), want 1", len(ports), err)
	}
	return ports[0].Withdrawn
}

func TestSwitchoverIsTakenBack(t *testing.T) {
	w, s, _ := opened(t)
	if _, err := s.Handle(t.Context(), moving, resumed); err != nil {
		t.Fatal(err)
	}
	if !w.isWithdrawn(t) {
		t.Error("the port is open on the target though the VM goes on where it was")
	}
	// It comes after all.
	w.pods.Modify(readyPod())
	eventually(t, "the port", func() error {
		if w.isWithdrawn(t) || w.links.openings() < 2 {
			return errors.New("OVN is not told of it again, or it is not opened")
		}
		return nil
	})
}

// Another agent's restart does not lose what the former has taken away.
func TestSwitchoverIsTakenBackOverARestart(t *testing.T) {
	w, s, _ := opened(t)
	if _, err := s.Handle(t.Context(), moving, resumed); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.links.mu.Lock()
	clear(w.links.open)
	w.links.mu.Unlock()
	w.pods.Modify(readyPod())
	w.observe(t)
	eventually(t, "the port", func() error {
		if w.isWithdrawn(t) {
			return errors.New("OVN is not told of it again")
		}
		return nil
	})
}

// restores is how often it was tried to give a port back.
func (w *watched) restores() (n int) {
	w.node.mu.Lock()
	defer w.node.mu.Unlock()
	for _, call := range w.node.calls {
		if call == "Restore" {
			n++
		}
	}
	return n
}

// A migration that succeeds while the port cannot be given back is not the end of it: it is tried until it is done.
func TestSwitchoverIsTakenBackWhenItIsOver(t *testing.T) {
	w, s, _ := opened(t)
	if _, err := s.Handle(t.Context(), moving, resumed); err != nil {
		t.Fatal(err)
	}
	w.node.mu.Lock()
	w.node.fail["Restore"] = errors.New("the database is away")
	w.node.mu.Unlock()
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	eventually(t, "attempts", func() error {
		if n := w.restores(); n < 2 {
			return fmt.Errorf("%d to give the port back", n)
		}
		return nil
	})
	w.node.mu.Lock()
	delete(w.node.fail, "Restore")
	w.node.mu.Unlock()
	eventually(t, "the port", func() error {
		if w.isWithdrawn(t) {
			return errors.New("OVN is not told of it again")
		}
		return nil
	})
	w.idle(t)
}

// What no watch gives back, as when the agent was away at the migration's end, is given back when the agent looks for leftovers: not while the migration runs, and not if it has failed.
func TestSwitchoverIsTakenBackWithoutAWatch(t *testing.T) {
	for result, withdrawn := range map[v1alpha1.MigrationResult]bool{v1alpha1.MigrationSucceeded: false, v1alpha1.MigrationFailed: true, "": true, "gone": false} {
		t.Run(string(result), func(t *testing.T) {
			w, s, _ := opened(t)
			if _, err := s.Handle(t.Context(), moving, resumed); err != nil {
				t.Fatal(err)
			}
			w.stop()
			if result == "gone" {
				w.records.remove(w.pm)
			} else {
				w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = result })
			}
			w.links.mu.Lock()
			clear(w.links.open)
			w.links.mu.Unlock()
			w.observe(t)
			eventually(t, "records", func() error {
				if !w.observer.migrations[sideTarget].HasSynced() {
					return errors.New("they are not listed")
				}
				return nil
			})
			if err := newLeftovers(w.attacher).pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := w.isWithdrawn(t); got != withdrawn {
				t.Errorf("the port is withdrawn: %v, want %v", got, withdrawn)
			}
		})
	}
}

func TestSwitchoverCannotTakeAVMThatRuns(t *testing.T) {
	for name, runs := range map[string]func(w *watched, c *fakeCapture){
		"it was heard":      func(_ *watched, c *fakeCapture) { c.frames <- frame.Seen{At: time.Now().Add(time.Millisecond)} },
		"KubeVirt says so":  func(w *watched, _ *fakeCapture) { w.pods.Modify(readyPod()) },
		"it was announced":  func(_ *watched, c *fakeCapture) { c.frames <- frame.Seen{At: time.Now(), RARP: true} },
		"it is on record":   func(w *watched, _ *fakeCapture) { w.reach(v1alpha1.StageReady) },
		"it was settled so": func(w *watched, _ *fakeCapture) { w.reach(v1alpha1.StageCommitted) },
	} {
		t.Run(name, func(t *testing.T) {
			w, s, c := opened(t)
			runs(w, c)
			var err error
			eventually(t, "refusal", func() error {
				if _, err = s.Handle(t.Context(), moving, resumed); !errors.Is(err, errRunsHere) {
					return errors.New("taken away")
				}
				return nil
			})
		})
	}
}

// A signal that comes when the VM has announced itself changes nothing.
func TestSwitchoverThatComesLate(t *testing.T) {
	w := newWatched(t)
	s := w.listening(t)
	w.records.add(w.pm)
	w.watching(t)
	c := w.links.capture(t, w.target(t))
	first := time.Now()
	c.frames <- frame.Seen{At: at(first, 0), RARP: true}
	c.frames <- frame.Seen{At: at(first, time.Millisecond)}
	before := w.records.whole(t, w.pm)
	if _, err := s.Handle(t.Context(), moving, stopped); err != nil {
		t.Errorf("a late signal: %v", err)
	}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
	if n := w.links.openings(); n != 0 || w.isWithdrawn(t) {
		t.Errorf("%d RARPs after a late signal, want none, and the port where it is", n)
	}
	if after := *w.records.status(w.pm).Target; !same(before, after) || after.ActivatedBy != v1alpha1.ActivatedByRARP {
		t.Errorf("reported %+v, then %+v, want the same, by RARP", before, after)
	}
}

// A port that was opened for a VM of which nobody hears is taken from OVN again, and given back when it comes.
func TestSwitchoverThatNobodyFollows(t *testing.T) {
	w, _, _ := opened(t)
	target := w.observer.find(keyOn(sideTarget, w.pm))
	if w.isWithdrawn(t) {
		t.Error("the port is taken from OVN at once")
	}
	target.tap(ident.VMPort("ns", "vm", "default")).update(func(s *sighting) { s.opened = s.opened.Add(-openTimeout) })
	target.poke()
	eventually(t, "the port", func() error {
		if !w.isWithdrawn(t) {
			return errors.New("it is open still")
		}
		return nil
	})
	w.pods.Modify(readyPod())
	eventually(t, "the port", func() error {
		if w.isWithdrawn(t) {
			return errors.New("OVN is not told of it again")
		}
		return nil
	})
}

func (w *watched) reach(stage v1alpha1.StageName) {
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Stages = append(st.Stages, v1alpha1.Stage{Name: stage}) })
}

// ears are the target's agent, as the source's sees it.
type ears struct {
	mu    sync.Mutex
	heard []peer.Message
	fail  error
	// deaf is what connections are answered by, those of the zone lacks by errNoZone.
	deaf  error
	lacks string
	// lacked counts the latter.
	lacked int
}

func (e *ears) Admit(string, peer.Migration) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fail
}

func (e *ears) Handle(_ context.Context, _ peer.Migration, m peer.Message) (peer.Reply, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.Kind == peer.Connections && e.deaf != nil {
		return peer.Reply{}, e.deaf
	}
	if m.Kind == peer.Connections && m.Zone == e.lacks {
		e.lacked++
		return peer.Reply{}, errNoZone
	}
	e.heard = append(e.heard, m)
	return peer.Reply{}, nil
}

func (e *ears) kinds() (out []peer.Kind) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.heard {
		out = append(out, m.Kind)
	}
	return out
}

// nodeFiles are a node's certificate and its authority.
func nodeFiles(t *testing.T, ca pki.Authority, node string) *pki.Files {
	t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(rand.Reader, pki.Leaf{Name: node, Usage: pki.Client, Key: key.Public()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	disk := map[string][]byte{"/ca.crt": pki.EncodeCertificates(ca.Certificate), "/tls.crt": cert, "/tls.key": secret}
	return pki.Dir(func(name string) ([]byte, error) {
		if b, ok := disk[name]; ok {
			return b, nil
		}
		return nil, fs.ErrNotExist
	}, "/")
}

// speaking gives the source's observer a mouth, and a target's agent that listens.
func (w *watched) speaking(t *testing.T) (*ears, chan hypervisor.Event) {
	t.Helper()
	ca, err := pki.NewAuthority(rand.Reader, "nodes", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	log, e := slog.New(slog.NewTextHandler(t.Output(), nil)), &ears{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := (&peer.Server{Files: nodeFiles(t, ca, "zero"), Service: e, Log: log}).Serve(ctx, l); err != nil {
			t.Errorf("the target's agent: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	events := make(chan hypervisor.Event, 4)
	w.observer.switchover = &switchover{
		log: log, node: "one", port: number, files: nodeFiles(t, ca, "one"), observer: w.observer,
		addresses: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		},
		stops: func(ctx context.Context, l hypervisor.Launcher) (<-chan hypervisor.Event, error) {
			if l.UID != uid {
				t.Errorf("events of pod %q, want %q", l.UID, uid)
			}
			out := make(chan hypervisor.Event)
			go func() {
				defer close(out)
				for {
					select {
					case <-ctx.Done():
						return
					case e := <-events:
						out <- e
					}
				}
			}()
			return out, nil
		},
	}
	return e, events
}

func TestSwitchoverSignals(t *testing.T) {
	w := newWatched(t)
	link := w.source(t)
	e, events := w.speaking(t)
	w.records.add(w.pm)
	c := w.links.capture(t, link)
	last := time.Now()
	c.frames <- frame.Seen{At: at(last, 0)}
	events <- hypervisor.Resumed // its user's doing: nobody is told
	w.reach(v1alpha1.StagePrepared)
	events <- hypervisor.Stopped
	eventually(t, "signal", func() error {
		if !slices.Equal(e.kinds(), []peer.Kind{peer.Stopped}) {
			return errors.New("not told")
		}
		return nil
	})
	if got := e.heard[0].Ports; !slices.Equal(got, stopped.Ports) {
		t.Errorf("ports %v, want %v", got, stopped.Ports)
	}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	got := w.records.reported(t, w.pm, sideSource)
	if got.Stopped == nil || got.Stopped.Time.Before(last.Truncate(time.Microsecond)) || got.FramesLost == nil || *got.FramesLost != 0 {
		t.Errorf("reported %+v, want the stop, and no frame lost", got)
	}
	wantTime(t, "last frame", got.LastFrame, at(last, 0))
	w.idle(t)
}

func TestSwitchoverThatFailsIsTold(t *testing.T) {
	w := newWatched(t)
	link := w.source(t)
	e, events := w.speaking(t)
	w.records.add(w.pm)
	w.links.capture(t, link)
	w.reach(v1alpha1.StagePrepared)
	events <- hypervisor.Stopped
	events <- hypervisor.Resumed
	eventually(t, "what was told", func() error {
		if !slices.Equal(e.kinds(), []peer.Kind{peer.Stopped, peer.Resumed}) || w.links.openings() != 1 {
			return errors.New("not all yet")
		}
		return nil
	})
}

// A target that cannot be told, or that has no wish to hear, costs the migration nothing.
func TestSwitchoverThatIsRefused(t *testing.T) {
	w := newWatched(t)
	link := w.source(t)
	e, events := w.speaking(t)
	e.fail = errors.New("not known here")
	w.records.add(w.pm)
	c := w.links.capture(t, link)
	w.reach(v1alpha1.StagePrepared)
	events <- hypervisor.Stopped
	eventually(t, "count", func() error {
		if w.switchovers(t, switchoverUndelivered) != 1 {
			return errors.New("not counted")
		}
		return nil
	})
	last := time.Now()
	c.frames <- frame.Seen{At: at(last, 0)}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	got := w.records.reported(t, w.pm, sideSource)
	wantTime(t, "last frame", got.LastFrame, at(last, 0))
	if got.FramesLost != nil {
		t.Errorf("%d frames lost are reported, and nobody knows until when", *got.FramesLost)
	}
	w.idle(t)
}

// switchovers is the counter of one event.
func (w *watched) switchovers(t *testing.T, event string) (n float64) {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "godwit_agent_switchover_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == event {
				n = m.GetCounter().GetValue()
			}
		}
	}
	return n
}
