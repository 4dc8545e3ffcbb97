package agent

// Observer: what the network did while a VM migrates, and the announcement that a VM does not make itself.
// In:   PortMigrations from and to this node; launcher pods' annotation kubevirt.io/migration-target-ready-timestamp; frames on the ports' links, only while a
//       migration runs.
// Out:  PortMigration status.source or status.target; RARP frames on the pod's side of a link.

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// Reporter writes what the agent of one side observed. Fields that are absent stay as they are.
type Reporter func(ctx context.Context, migration types.NamespacedName, part v1alpha1.PortMigrationStatus) error

// capture is frames on one link; *frame.Capture implements it.
type capture interface {
	Read(frames []frame.Seen) (n int, err error)
	Close() error
}

// sender puts frames on one link; *frame.Sender implements it.
type sender interface {
	Send(frame []byte) error
	Close() error
}

// links is where frames are seen and sent.
type links interface {
	// Open sees what comes out of the pod on the host's link.
	Open(link string, mac net.HardwareAddr) (capture, error)
	// Sender puts frames on the pod's end of the host's link.
	Sender(link, netns string) (sender, error)
	// Sent is how many frames the host's link has sent to the pod since it was made.
	Sent(link string) (uint64, error)
	// DropInvalid makes a pod silent about what comes in at its link and fits into no connection that it knows.
	DropInvalid(ctx context.Context, netns, link string) error
}

// hostLinks are the kernel's.
type hostLinks struct{ host netdev.Host }

func (h hostLinks) Open(link string, mac net.HardwareAddr) (c capture, err error) {
	err = h.host.Do(func() error {
		opened, err := frame.Open(link, mac)
		if err == nil {
			c = opened
		}
		return err
	})
	return c, err
}

func (h hostLinks) Sender(link, netns string) (s sender, err error) {
	index, err := h.host.PeerIndex(link)
	if err != nil {
		return nil, err
	}
	err = netdev.InNetns(netns, func() error {
		opened, err := frame.NewSender(index)
		if err == nil {
			s = opened
		}
		return err
	})
	return s, err
}

func (h hostLinks) Sent(link string) (uint64, error) { return h.host.Sent(link) }

func (hostLinks) DropInvalid(ctx context.Context, netns, link string) error {
	return netdev.DropInvalid(ctx, netns, link)
}

// observer keeps one watch for each migration that begins or ends here.
type observer struct {
	log        *slog.Logger
	links      links
	inputs     *inputs
	migrations migrations
	node       *nodeState
	report     Reporter
	metrics    *metrics
	wake       chan struct{}
	// switchover is nil if agents say nothing to one another.
	switchover *switchover

	mu      sync.Mutex
	watches map[watchKey]*watch
}

// watchKey is one side of one migration to one target.
type watchKey struct {
	side side
	// namespace is the VM's. It belongs to the key: whoever writes PortMigrations in another namespace has no say in this one's, whatever UID they name.
	namespace string
	migration types.UID
	// target is the target's pod, which KubeVirt may make anew while the migration waits: what becomes of each is a record of its own.
	target types.UID
}

func keyOn(s side, pm *v1alpha1.PortMigration) watchKey {
	return watchKey{side: s, namespace: pm.Namespace, migration: pm.Spec.Migration.UID, target: pm.Spec.Target.Pod.UID}
}

// watchPods lets the observer know of launchers that are ready.
func (o *observer) watchPods() error {
	ready := func(obj any) {
		if pod, ok := obj.(*corev1.Pod); ok && isReady(pod) {
			o.poke()
		}
	}
	_, err := o.inputs.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: ready, UpdateFunc: func(_, obj any) { ready(obj) }})
	if err != nil {
		return fmt.Errorf("watch launcher pods: %w", err)
	}
	return nil
}

// isReady: the VM runs in this launcher, to which it was moved.
func isReady(pod *corev1.Pod) bool {
	return pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] != ""
}

// poke asks for another look at everything; it never blocks.
func (o *observer) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run observes until ctx ends.
func (o *observer) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for ctx.Err() == nil {
		for _, w := range o.wanted() {
			if w.started {
				w.poke()
				continue
			}
			w.started = true
			g.Go(func() error {
				defer o.forget(w)
				w.run(ctx)
				return nil
			})
		}
		select {
		case <-ctx.Done():
		case <-o.wake:
		}
	}
	err := g.Wait()
	for _, w := range o.wanted() { // those that were not started
		w.leave(ctx)
		w.close()
	}
	return err
}

// wanted adds a watch for every migration that runs, and returns all watches.
func (o *observer) wanted() []*watch {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range []side{sideSource, sideTarget} {
		for _, pm := range o.migrations.running(s) {
			key := keyOn(s, pm)
			if o.watches[key] == nil {
				o.supersede(key)
				o.watches[key] = newWatch(o, key, launcherOf(pm, s))
				o.watches[key].known = true
			}
		}
	}
	all := make([]*watch, 0, len(o.watches))
	for _, w := range o.watches {
		all = append(all, w)
	}
	return all
}

func launcherOf(pm *v1alpha1.PortMigration, s side) launcher {
	end := pm.Spec.Target
	if s == sideSource {
		end = pm.Spec.Source
	}
	return launcher{key: types.NamespacedName{Namespace: pm.Namespace, Name: end.Pod.Name}, uid: end.Pod.UID}
}

// supersede ends the watches of one side of a migration to other targets: KubeVirt has made its target anew, and what is heard from now on is of that one.
func (o *observer) supersede(key watchKey) {
	for k, former := range o.watches {
		if k.target = key.target; k == key {
			former.replace()
		}
	}
}

// find is the watch of one side of a migration; nil if there is none.
func (o *observer) find(key watchKey) *watch {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.watches[key]
}

func (o *observer) forget(w *watch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.watches[w.key] == w {
		delete(o.watches, w.key)
	}
}

// plugging is told of every link before OVN is. For the target of a migration it begins to see frames: the VM may run before the PortMigration is known.
func (o *observer) plugging(at *attachment) {
	w := o.target(at)
	if w == nil {
		return
	}
	if err := w.open(ovs.Port{Name: at.port.Name, ID: at.port.ID, MAC: at.port.MAC, Owner: at.port.Owner}); err != nil {
		at.log.Warn("migration is not observed; it goes on without", "error", err)
	}
	o.poke()
}

// installed is told when OVN has installed the port.
func (o *observer) installed(at *attachment) {
	if w := o.target(at); w != nil {
		w.attached(at.port.ID)
	}
}

// target is the watch for a migration that ends with this attachment; nil if none does.
func (o *observer) target(at *attachment) *watch {
	if o == nil || at.id.Attach == nil || at.id.Attach.Migration == "" {
		return nil
	}
	key := watchKey{side: sideTarget, namespace: at.req.Pod.Namespace, migration: types.UID(at.id.Attach.Migration), target: types.UID(at.id.UID)}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.watches[key] == nil {
		o.supersede(key)
		o.watches[key] = newWatch(o, key, launcher{key: types.NamespacedName{Namespace: at.req.Pod.Namespace, Name: at.req.Pod.Name}, uid: key.target})
	}
	return o.watches[key]
}
