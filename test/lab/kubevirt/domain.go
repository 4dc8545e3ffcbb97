package kubevirt

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

const (
	// connectPoll is how often a launcher that has just started, or whose connection broke, is tried again.
	connectPoll = 100 * time.Millisecond
	// requestTimeout bounds one request to a launcher.
	requestTimeout = 30 * time.Second
)

// domains is virt-handler's part: a connection to each launcher that runs, and what each has said last.
type domains struct {
	launchers Launchers
	// changed is called when something is new of a VM.
	changed func(vmi types.NamespacedName)
	journal *journal
	log     *slog.Logger

	mu    sync.Mutex
	byPod map[types.UID]*domain
	// relays are those of migrations, by the target pod.
	relays map[types.UID]Relay
	wg     sync.WaitGroup
}

// domain is what is known of one launcher pod.
type domain struct {
	vmi    types.NamespacedName
	pod    *corev1.Pod
	cancel context.CancelFunc

	mu       sync.Mutex
	launcher Launcher
	view     view
	// seen is the last event that was.
	seen int
	// asked are the requests that have been made of this launcher, with how they ended.
	asked map[string]outcome
}

type outcome struct {
	done bool
	err  error
}

// view is a launcher at one moment, for the rules.
type view struct {
	guest.Status
	// connected: the launcher has told its state.
	connected bool
	// arriving: something of a guest has come here. ran: its processors have run here. off: the guest has switched itself off.
	arriving, ran, off bool
	// resumed is when the guest's processors began to run here last, zero for never.
	resumed time.Time
	asked   map[string]outcome
}

// wasAsked: the request was made.
func (v view) wasAsked(request string) bool { _, ok := v.asked[request]; return ok }

// did: the request was made and has succeeded.
func (v view) did(request string) bool { o := v.asked[request]; return o.done && o.err == nil }

// failure is why a request failed, nil when it has not.
func (v view) failure(request string) error { return v.asked[request].err }

// migration is the state of the last migration here, empty for none.
func (v view) migration() guest.MigrationStatus {
	if v.Migration == nil {
		return ""
	}
	return v.Migration.Status
}

func newDomains(l Launchers, j *journal, log *slog.Logger, changed func(types.NamespacedName)) *domains {
	return &domains{launchers: l, journal: j, log: log, changed: changed, byPod: map[types.UID]*domain{}, relays: map[types.UID]Relay{}}
}

// follow connects to the launcher in a pod, unless it is connected, and keeps connected until forget or ctx ends.
func (d *domains) follow(ctx context.Context, vmi types.NamespacedName, pod *corev1.Pod) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byPod[pod.UID] != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	dom := &domain{vmi: vmi, pod: pod.DeepCopy(), cancel: cancel, asked: map[string]outcome{}}
	d.byPod[pod.UID] = dom
	d.wg.Go(func() { d.keep(ctx, dom) })
}

// forget ends the connection to a pod that is gone or has ended.
func (d *domains) forget(uid types.UID) {
	d.closeRelay(uid)
	d.mu.Lock()
	defer d.mu.Unlock()
	if dom := d.byPod[uid]; dom != nil {
		dom.cancel()
		delete(d.byPod, uid)
	}
}

// gone forgets the pods of a VM that are not among those that there are.
func (d *domains) gone(vmi types.NamespacedName, there map[types.UID]bool) {
	d.mu.Lock()
	var gone []types.UID
	for uid, dom := range d.byPod {
		if dom.vmi == vmi && !there[uid] {
			gone = append(gone, uid)
		}
	}
	d.mu.Unlock()
	for _, uid := range gone {
		d.forget(uid)
	}
}

// close ends all connections, and waits for requests that are under way.
func (d *domains) close() {
	d.mu.Lock()
	var all []types.UID
	for uid := range d.byPod {
		all = append(all, uid)
	}
	d.mu.Unlock()
	for _, uid := range all {
		d.forget(uid)
	}
	d.wg.Wait()
}

// find returns a pod's domain, nil when it is not followed.
func (d *domains) find(uid types.UID) *domain {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byPod[uid]
}

// view returns what is known of a pod's launcher; the zero value for one that is not followed.
func (d *domains) view(uid types.UID) view {
	dom := d.find(uid)
	if dom == nil {
		return view{}
	}
	dom.mu.Lock()
	defer dom.mu.Unlock()
	v := dom.view
	v.connected = v.connected && dom.launcher != nil
	v.asked = map[string]outcome{}
	for name, o := range dom.asked {
		v.asked[name] = o
	}
	return v
}

// keep connects again and again.
func (d *domains) keep(ctx context.Context, dom *domain) {
	for ctx.Err() == nil {
		if err := d.watch(ctx, dom); err != nil && ctx.Err() == nil {
			d.log.Debug("no connection to a launcher", "pod", dom.pod.Name, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(connectPoll):
		}
	}
}

// watch takes in a launcher's events until the connection ends. After each event its state is read.
func (d *domains) watch(ctx context.Context, dom *domain) error {
	l, err := d.launchers.Connect(ctx, dom.pod)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := d.refresh(ctx, dom, l, nil); err != nil {
		return err
	}
	dom.mu.Lock()
	seen := dom.seen
	dom.mu.Unlock()
	defer func() {
		dom.mu.Lock()
		dom.launcher = nil
		dom.mu.Unlock()
	}()
	for e, err := range l.Events(ctx, seen) {
		if err != nil {
			return err
		}
		d.journal.event(dom, e)
		if err := d.refresh(ctx, dom, l, &e); err != nil {
			return err
		}
	}
	return nil
}

// refresh reads a launcher's state, after an event or without one.
func (d *domains) refresh(ctx context.Context, dom *domain, l Launcher, e *guest.Event) error {
	s, err := l.Status(ctx)
	dom.mu.Lock()
	if err == nil {
		dom.launcher, dom.view.Status, dom.view.connected = l, s, true
	}
	if e != nil {
		dom.seen = e.Seq
		dom.view.take(*e)
	}
	dom.mu.Unlock()
	d.changed(dom.vmi)
	return err
}

func (v *view) take(e guest.Event) {
	switch e.Type {
	case guest.Resumed:
		v.ran, v.resumed = true, e.At()
	case guest.Off:
		v.off = true
	case guest.QEMUEnded:
		v.State = guest.Ended
	case guest.MigrationChanged:
		v.arriving = v.arriving || v.State == guest.Receiving && e.Status == guest.Active
	case guest.Stopped, guest.PlumbingDone, guest.QEMUStarted, guest.Leased:
	}
}

// ask makes a request of a pod's launcher, once, beside what else goes on: the rules see how it ended.
func (d *domains) ask(ctx context.Context, uid types.UID, request string, do func(context.Context, Launcher) error) error {
	dom := d.find(uid)
	if dom == nil {
		return fmt.Errorf("%s: the launcher's pod is not followed", request)
	}
	dom.mu.Lock()
	defer dom.mu.Unlock()
	if dom.launcher == nil {
		return fmt.Errorf("%s: there is no connection to the launcher in pod %s", request, dom.pod.Name)
	}
	if _, asked := dom.asked[request]; asked {
		return nil
	}
	dom.asked[request] = outcome{}
	l := dom.launcher
	d.wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		err := do(ctx, l)
		if err != nil {
			d.log.Warn("a launcher did not do what it was asked for", "pod", dom.pod.Name, "request", request, "err", err)
		}
		d.journal.request(dom, request, err)
		// The rules must not see what was before the request beside the news that it was fulfilled.
		if refreshErr := d.refresh(ctx, dom, l, nil); refreshErr != nil {
			d.log.Debug("a launcher has ended after a request", "pod", dom.pod.Name, "request", request, "err", refreshErr)
		}
		dom.mu.Lock()
		dom.asked[request] = outcome{done: true, err: err}
		dom.mu.Unlock()
		d.changed(dom.vmi)
	})
	return nil
}

// relay connects the launcher in the pod source to that in target, until ctx ends or target is forgotten.
func (d *domains) relay(ctx context.Context, source, target *corev1.Pod) error {
	d.closeRelay(target.UID)
	r, err := d.launchers.Relay(ctx, source, target)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.relays[target.UID] = r
	d.mu.Unlock()
	return nil
}

// cut breaks the stream to a target.
func (d *domains) cut(target types.UID) {
	d.mu.Lock()
	r := d.relays[target]
	d.mu.Unlock()
	if r != nil {
		r.Cut()
	}
}

func (d *domains) closeRelay(target types.UID) {
	d.mu.Lock()
	r := d.relays[target]
	delete(d.relays, target)
	d.mu.Unlock()
	if r == nil {
		return
	}
	if err := r.Close(); err != nil {
		d.log.Warn("a migration's relay did not end well", "err", err)
	}
}
