package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// fakeLinks are links in memory. What is sent on one comes out of it, as on a veth.
type fakeLinks struct {
	mu   sync.Mutex
	open map[string]*fakeCapture
	sent []string
	// opened are those that a marked RARP was sent on, delivered how many frames every link has sent.
	opened    []string
	delivered uint64
	// quiet are the links of pods that are silent about what they do not know.
	quiet []string
	// voices are the senders that are open.
	voices int
	fail   error
}

type fakeCapture struct {
	frames chan frame.Seen
	closed chan struct{}
	once   sync.Once
}

var errLinkGone = errors.New("network is down")

func (l *fakeLinks) Open(link string, _ net.HardwareAddr) (capture, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return nil, l.fail
	}
	c := &fakeCapture{frames: make(chan frame.Seen, 100), closed: make(chan struct{})}
	l.open[link] = c
	return c, nil
}

func (l *fakeLinks) Sender(link, _ string) (sender, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return nil, l.fail
	}
	l.voices++
	return &fakeSender{links: l, link: link}, nil
}

type fakeSender struct {
	links *fakeLinks
	link  string
	once  sync.Once
}

func (f *fakeSender) Close() error {
	err := os.ErrClosed
	f.once.Do(func() {
		f.links.mu.Lock()
		defer f.links.mu.Unlock()
		f.links.voices--
		err = nil
	})
	return err
}

func (f *fakeSender) Send(b []byte) error {
	l, link := f.links, f.link
	l.mu.Lock()
	defer l.mu.Unlock()
	ours := bytes.Equal(b, frame.Opening(mac7()))
	if !ours && !bytes.Equal(b, frame.RARP(mac7())) {
		return errors.New("not the VM's RARP")
	}
	if ours {
		l.opened = append(l.opened, link)
	} else {
		l.sent = append(l.sent, link)
	}
	if c := l.open[link]; c != nil {
		c.frames <- frame.Seen{At: time.Now(), RARP: true, Ours: ours}
	}
	return nil
}

// Sent is what the test says.
func (l *fakeLinks) Sent(string) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delivered, nil
}

func (l *fakeLinks) DropInvalid(_ context.Context, netns, link string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quiet = append(l.quiet, netns+" "+link)
	return nil
}

func (l *fakeLinks) quieted() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.quiet)
}

// openings are the RARPs that opened ports.
func (l *fakeLinks) openings() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.opened)
}

func (l *fakeLinks) sends() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sent)
}

// capture waits until frames of the link are looked at.
func (l *fakeLinks) capture(t *testing.T, link string) *fakeCapture {
	t.Helper()
	var c *fakeCapture
	eventually(t, "frames of "+link, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c = l.open[link]; c == nil {
			return errors.New("nobody looks")
		}
		return nil
	})
	return c
}

func (c *fakeCapture) Read(frames []frame.Seen) (int, error) {
	select {
	case f, ok := <-c.frames:
		if !ok {
			return 0, errLinkGone
		}
		frames[0] = f
		return 1, nil
	case <-c.closed:
		return 0, os.ErrClosed
	}
}

func (c *fakeCapture) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func mac7() net.HardwareAddr { return net.HardwareAddr(identityOf(uid, 7).MAC) }

// watched is a bench with an observer that runs.
type watched struct {
	*bench
	links   *fakeLinks
	records *records
	pm      *v1alpha1.PortMigration
	stop    func()
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{bench: newBench(t), links: &fakeLinks{open: map[string]*fakeCapture{}}, records: newRecords()}
	w.pm = &v1alpha1.PortMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m1"},
		Spec: v1alpha1.PortMigrationSpec{
			Migration: v1alpha1.ObjectName{Name: "m", UID: "m-uid"}, VMI: v1alpha1.ObjectName{Name: "vm", UID: "vmi-uid"},
			Source: v1alpha1.MigrationEnd{Node: "zero", Pod: v1alpha1.ObjectName{Name: "b", UID: "b-uid"}},
			Target: v1alpha1.MigrationEnd{Node: "one", Pod: v1alpha1.ObjectName{Name: "a", UID: uid}},
			Ports:  []v1alpha1.MigratedPort{{Network: "default", Name: string(ident.VMPort("ns", "vm", "default")), MAC: mac7().String()}},
		},
	}
	w.observe(t)
	return w
}

// observe starts an observer, as a restart of the agent does.
func (w *watched) observe(t *testing.T) {
	t.Helper()
	o := &observer{
		log: slog.New(slog.NewTextHandler(t.Output(), nil)), links: w.links, inputs: w.inputs, node: w.attacher.node, report: w.records.report,
		metrics: w.metrics, wake: make(chan struct{}, 1), watches: map[watchKey]*watch{},
	}
	var err error
	o.migrations, err = newMigrations(Sources{MigrationsFrom: w.records.of("one", sideSource), MigrationsTo: w.records.of("one", sideTarget)}, o.poke)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.watchPods(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { o.migrations.run(ctx) })
	wg.Go(func() {
		if err := o.run(ctx); err != nil {
			t.Errorf("observer ended with %v", err)
		}
	})
	w.observer = o
	var once sync.Once
	w.stop = func() { once.Do(func() { cancel(); wg.Wait() }) }
	t.Cleanup(w.stop)
}

// target attaches the target's launcher and returns its link's name.
func (w *watched) target(t *testing.T) string {
	t.Helper()
	w.pods.Add(targetPod())
	if _, err := w.handle(t.Context(), addRequest()); err != nil {
		t.Fatal(err)
	}
	return netdev.HostName("c1", "eth0")
}

func targetPod() *corev1.Pod {
	id := identityOf(uid, 7)
	id.VMI, id.Attach = &v1alpha1.Instance{Name: "vm", UID: "vmi-uid"}, &v1alpha1.Attach{Chassis: "one", Migration: "m-uid", Activation: v1alpha1.ActivationRARP}
	pod := podA(map[string]string{v1alpha1.IdentityAnnotation: id.Text()})
	launch(pod, "vm", "vmi-uid")
	return pod
}

// readyPod is targetPod when the VM runs in it.
func readyPod() *corev1.Pod {
	pod := targetPod()
	pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] = "2026-11-20 21:43:34 +0000 UTC"
	return pod
}

// source puts the source's launcher, which is "a" here, on the node.
func (w *watched) source(t *testing.T) string {
	t.Helper()
	w.pm.Spec.Source, w.pm.Spec.Target = w.pm.Spec.Target, w.pm.Spec.Source
	if err := w.node.EnsurePort(t.Context(), ovs.Port{
		Name: "gwsource", ID: ident.VMPort("ns", "vm", "default"), MAC: mac7().String(), Owner: ovs.Owner{Container: "c0", Pod: "ns/a", Netns: "/run/netns/a", IfName: "eth0"},
	}); err != nil {
		t.Fatal(err)
	}
	return "gwsource"
}

// counted is the sum of a counter's values.
func (w *watched) counted(t *testing.T, name string) (n float64) {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			n += m.GetCounter().GetValue()
		}
	}
	return n
}

// watching waits until the observer knows of a migration.
func (w *watched) watching(t *testing.T) {
	t.Helper()
	eventually(t, "watch", func() error {
		w.observer.mu.Lock()
		defer w.observer.mu.Unlock()
		if len(w.observer.watches) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
}

func (w *watched) idle(t *testing.T) {
	t.Helper()
	eventually(t, "the end of all watches", func() error {
		w.observer.mu.Lock()
		defer w.observer.mu.Unlock()
		if n := len(w.observer.watches); n != 0 {
			return errors.New("a migration is still watched")
		}
		return nil
	})
}

// at is a time as the API keeps it.
func at(start time.Time, after time.Duration) time.Time {
	return start.Add(after).Truncate(time.Microsecond)
}

func wantTime(t *testing.T, what string, got *metav1.MicroTime, want time.Time) {
	t.Helper()
	if got == nil || !got.Time.Equal(want) {
		t.Errorf("%s is %v, want %s", what, got, want)
	}
}

func TestTargetReportsWhatItSaw(t *testing.T) {
	for name, known := range map[string]bool{"migration known first": true, "migration known late": false} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t)
			if known {
				w.records.add(w.pm)
			}
			before := time.Now()
			c := w.links.capture(t, w.target(t))
			start := time.Now()
			c.frames <- frame.Seen{At: at(start, time.Millisecond)}
			c.frames <- frame.Seen{At: at(start, 2*time.Millisecond)}
			c.frames <- frame.Seen{At: at(start, 3*time.Millisecond), RARP: true}
			c.frames <- frame.Seen{At: at(start, 4*time.Millisecond)}
			if !known {
				w.records.add(w.pm)
			}
			got := w.records.reported(t, w.pm, sideTarget)
			wantTime(t, "first frame", got.FirstFrame, at(start, 4*time.Millisecond))
			wantTime(t, "announcement", got.Announced, at(start, 3*time.Millisecond))
			if got.FramesBeforeAnnouncement != 2 || got.AnnouncedByAgent || got.LastFrame != nil || len(got.Clock.BootID) != 36 {
				t.Errorf("reported %+v, want 2 frames before the VM's own announcement, and the machine", got)
			}
			if got.Attached == nil || got.Attached.Time.Before(before.Truncate(time.Microsecond)) || got.Attached.After(start) {
				t.Errorf("attached at %v, want between %s and %s", got.Attached, before, start)
			}
			w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
			w.idle(t)
			if n := w.records.written(sideTarget); n != 1 {
				t.Errorf("status was written %d times, want once", n)
			}
			if n := w.counted(t, "godwit_agent_announcements_total"); n != 1 {
				t.Errorf("%v announcements counted, want 1", n)
			}
		})
	}
}

// TestTargetTellsWhenThePortWasOpened: an announcement says nothing while OVN still blocks the port, and what was seen is told when it does not any more.
func TestTargetTellsWhenThePortWasOpened(t *testing.T) {
	w := newWatched(t)
	w.node.opened = make(chan time.Time)
	w.records.add(w.pm)
	c := w.links.capture(t, w.target(t))
	w.node.opened <- time.Time{} // it is blocked
	start := time.Now()
	c.frames <- frame.Seen{At: at(start, time.Millisecond), RARP: true}
	c.frames <- frame.Seen{At: at(start, 2*time.Millisecond)}
	eventually(t, "both are seen", func() error {
		if s := w.seen(t); s.first.IsZero() {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if n := w.records.written(sideTarget); n != 0 {
		t.Errorf("status was written %d times while OVN blocks the port", n)
	}
	w.node.opened <- at(start, 3*time.Second)
	w.node.opened <- time.Time{}
	w.node.opened <- at(start, 4*time.Second)
	eventually(t, "all is told", func() error {
		if s := w.seen(t); !s.unblocked.Equal(at(start, 4*time.Second)) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	got := w.records.reported(t, w.pm, sideTarget)
	wantTime(t, "announcement", got.Announced, at(start, time.Millisecond))
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
	wantTime(t, "end of the block", w.records.reported(t, w.pm, sideTarget).Unblocked, at(start, 4*time.Second))
}

// seen is what was seen at the one port of the one migration.
func (w *watched) seen(t *testing.T) sighting {
	t.Helper()
	w.observer.mu.Lock()
	defer w.observer.mu.Unlock()
	for _, one := range w.observer.watches {
		if all := one.sightings(); len(all) == 1 {
			return all[0]
		}
	}
	return sighting{}
}

func TestAgentAnnouncesAVMThatDoesNot(t *testing.T) {
	for name, known := range map[string]bool{"migration known": true, "migration not known": false} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t)
			if known {
				w.records.add(w.pm)
			}
			w.target(t)
			ready := time.Now()
			w.pods.Modify(readyPod())
			eventually(t, "five announcements", func() error {
				if n := w.links.sends(); n != 5 {
					return errors.New("not yet")
				}
				return nil
			})
			took := time.Since(ready)
			if !known {
				w.records.add(w.pm)
			}
			got := w.records.reported(t, w.pm, sideTarget)
			if got.Announced == nil || !got.AnnouncedByAgent {
				t.Fatalf("reported %+v, want the agent's announcement", got)
			}
			if d := got.Announced.Sub(ready); d < announceAfter || took < announceAfter+announceAgain()[4] {
				t.Errorf("announced %s after the VM was ready, the last of five after %s", d, took)
			}
			w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
			w.idle(t)
			if n := w.links.sends(); n != 5 {
				t.Errorf("%d announcements, want 5", n)
			}
		})
	}
}

func TestAgentDoesNotAnnounce(t *testing.T) {
	for name, heard := range map[string]func(w *watched, c *fakeCapture){
		"VM did": func(_ *watched, c *fakeCapture) { c.frames <- frame.Seen{At: time.Now(), RARP: true} },
		"OVN has opened the port": func(w *watched, _ *fakeCapture) {
			w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Stages = []v1alpha1.Stage{{Name: v1alpha1.StageActivated}} })
		},
		"the port is the target's alone": func(w *watched, _ *fakeCapture) {
			w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Stages = []v1alpha1.Stage{{Name: v1alpha1.StageCommitted}} })
		},
		"migration failed": func(w *watched, _ *fakeCapture) {
			w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationFailed })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatched(t)
			w.records.add(w.pm)
			c := w.links.capture(t, w.target(t))
			heard(w, c)
			w.pods.Modify(readyPod())
			time.Sleep(2 * announceAfter) // that something does not happen shows only in time
			if n := w.links.sends(); n != 0 {
				t.Errorf("%d announcements, want none", n)
			}
		})
	}
}

func TestSourceReportsTheLastFrame(t *testing.T) {
	w := newWatched(t)
	link := w.source(t)
	w.records.add(w.pm)
	c := w.links.capture(t, link)
	start := time.Now()
	c.frames <- frame.Seen{At: at(start, 0)}
	c.frames <- frame.Seen{At: at(start, time.Millisecond)}
	time.Sleep(silence + 50*time.Millisecond) // quiet, but nobody has heard the VM on the target
	if n := w.records.written(sideSource); n != 0 {
		t.Errorf("status was written %d times before the VM was heard on the target", n)
	}
	last := time.Now()
	c.frames <- frame.Seen{At: at(last, 0)}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) {
		st.Target = &v1alpha1.Observation{Announced: &metav1.MicroTime{Time: last}}
	})
	got := w.records.reported(t, w.pm, sideSource)
	if diff := cmp.Diff([]string{"/run/netns/a eth0"}, w.links.quieted()); diff != "" {
		t.Errorf("links at which pods are silent about what they do not know (-want +got):\n%s", diff)
	}
	wantTime(t, "last frame", got.LastFrame, at(last, 0))
	if d := time.Since(last); d < silence {
		t.Errorf("the last frame was known %s after it, before it could be the last", d)
	}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
	if n := w.records.written(sideSource); n != 1 {
		t.Errorf("status was written %d times, want once", n)
	}
}

func TestWatchEnds(t *testing.T) {
	t.Run("with the migration", func(t *testing.T) {
		w := newWatched(t)
		w.records.add(w.pm)
		w.watching(t)
		c := w.links.capture(t, w.target(t))
		w.records.remove(w.pm)
		w.idle(t)
		select {
		case <-c.closed:
		default:
			t.Error("the link is still looked at")
		}
	})
	t.Run("with the link of a migration that is not known", func(t *testing.T) {
		w := newWatched(t)
		c := w.links.capture(t, w.target(t))
		close(c.frames)
		w.idle(t)
	})
	t.Run("with the agent", func(t *testing.T) {
		w := newWatched(t)
		w.records.add(w.pm)
		c := w.links.capture(t, w.target(t))
		w.stop()
		select {
		case <-c.closed:
		default:
			t.Error("the link is still looked at")
		}
	})
}

func TestAttachesWithoutObservation(t *testing.T) {
	w := newWatched(t)
	w.links.fail = errors.New("no more sockets")
	w.target(t)
}

// An agent that was restarted does not know what it saw before; what is reported stays.
func TestRestartKeepsWhatWasReported(t *testing.T) {
	w := newWatched(t)
	w.records.add(w.pm)
	c := w.links.capture(t, w.target(t))
	start := time.Now()
	c.frames <- frame.Seen{At: at(start, 0), RARP: true}
	c.frames <- frame.Seen{At: at(start, time.Millisecond)}
	before := w.records.whole(t, w.pm)
	w.stop()
	delete(w.links.open, netdev.HostName("c1", "eth0"))
	w.pods.Modify(readyPod())
	w.observe(t)
	c = w.links.capture(t, netdev.HostName("c1", "eth0"))
	c.frames <- frame.Seen{At: at(start, time.Second), RARP: true}
	c.frames <- frame.Seen{At: at(start, time.Second)}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
	if after := *w.records.status(w.pm).Target; !same(before, after) {
		t.Errorf("reported %+v, then %+v", before, after)
	}
	if n := w.links.sends(); n != 0 {
		t.Errorf("%d announcements after the VM's own", n)
	}
}

// An agent that ends in the middle of a migration leaves what it saw to the next.
func TestRestartGoesOn(t *testing.T) {
	w := newWatched(t)
	link := w.source(t)
	w.records.add(w.pm)
	start := time.Now()
	c := w.links.capture(t, link)
	c.frames <- frame.Seen{At: at(start, 0)}
	eventually(t, "frame", func() error {
		if len(c.frames) > 0 {
			return errors.New("not read")
		}
		return nil
	})
	w.stop()
	wantTime(t, "last frame of the first agent", w.records.reported(t, w.pm, sideSource).LastFrame, at(start, 0))
	delete(w.links.open, link)
	w.observe(t)
	w.links.capture(t, link).frames <- frame.Seen{At: at(start, time.Second)}
	w.records.change(w.pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	w.idle(t)
	wantTime(t, "last frame of the second", w.records.reported(t, w.pm, sideSource).LastFrame, at(start, time.Second))
}

// Between the VM's readiness and its announcement there may be no agent.
func TestRestartAnnounces(t *testing.T) {
	w := newWatched(t)
	w.records.add(w.pm)
	w.watching(t)
	link := w.target(t)
	w.links.capture(t, link)
	w.stop()
	delete(w.links.open, link)
	w.pods.Modify(readyPod())
	w.observe(t)
	w.links.capture(t, link).frames <- frame.Seen{At: time.Now()} // it may have sent others before
	var got v1alpha1.Observation
	eventually(t, "announcement", func() error {
		if got = w.records.reported(t, w.pm, sideTarget); got.Announced == nil {
			return errors.New("none is reported")
		}
		return nil
	})
	if got.Attached == nil || !got.AnnouncedByAgent || got.FirstFrame != nil || got.FramesBeforeAnnouncement != 0 {
		t.Errorf("reported %+v, want when it was attached, the agent's announcement and no first frame", got)
	}
}

func TestReportIsTriedAgain(t *testing.T) {
	w := newWatched(t)
	w.records.fail = errors.New("the API server is away")
	w.records.add(w.pm)
	c := w.links.capture(t, w.target(t))
	c.frames <- frame.Seen{At: time.Now(), RARP: true}
	c.frames <- frame.Seen{At: time.Now()}
	time.Sleep(50 * time.Millisecond)
	w.records.mu.Lock()
	w.records.fail = nil
	w.records.mu.Unlock()
	w.records.reported(t, w.pm, sideTarget)
}
