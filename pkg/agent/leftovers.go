package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

const (
	// leftoverInterval is how often the agent looks for what was left behind.
	leftoverInterval = 30 * time.Second
	// leftoverGrace is for how long something must have belonged to no pod of the node before it is removed: longer than any ADD takes, and than a sandbox usually lives on after
	// its pod was deleted, by force too.
	leftoverGrace = 5 * time.Minute
)

// leftovers clears the node of attachments that nobody will DEL any more, puts those back that somebody has taken off the bridge, and does what a migration that is over has left undone: a runtime may ask another plugin than the one that attached the pod, as when Multus takes over, or
// nobody, after a crash. It looks at everything again each time.
type leftovers struct {
	*attacher
	now             func() time.Time
	interval, grace time.Duration
	// since is when what is to go was first seen so; this loop alone uses it.
	since map[suspect]time.Time
	// outdated are the ports of which was told that nobody serves them; this loop alone uses it.
	outdated map[string]bool
}

// suspect is a port, by what cannot be said of two, or a veth without one.
type suspect struct {
	link, container string
	index           int
	// wanted: the veth's pod is here.
	wanted bool
}

func newLeftovers(a *attacher) *leftovers {
	return &leftovers{attacher: a, now: time.Now, interval: leftoverInterval, grace: leftoverGrace, since: map[suspect]time.Time{}, outdated: map[string]bool{}}
}

func (l *leftovers) run(ctx context.Context) {
	ticker := time.NewTicker(l.interval)
	defer ticker.Stop()
	for {
		if err := l.pass(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("attachments that were left behind, or have lost their port, are not as they should be; tried again", "error", err, "in", l.interval)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// pass removes what is known to be left behind, and remembers what looks so. The pods must have been listed.
func (l *leftovers) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	seen := map[suspect]bool{}
	err := errors.Join(
		l.removeStale(ctx),
		l.giveBack(ctx),
		l.sweep(ctx, "no pod of this node has it", func(p ovs.PortStatus) (bool, error) {
			s, pod := suspect{link: p.Name, container: p.Owner.Container}, l.inputs.pod(p.Owner.Pod)
			l.tellOutdated(p, pod)
			if !orphan(p, pod) {
				return false, nil
			}
			seen[s] = true
			return l.over(s), nil
		}),
		l.unplugged(ctx, seen),
	)
	for s := range l.since {
		if !seen[s] { // or was not looked at: its time begins anew
			delete(l.since, s)
		}
	}
	return err
}

// giveBack gives those ports to OVN again that a migration has taken from it and that is over, without having failed: its agent was away, or the database, when the VM came after all.
func (l *leftovers) giveBack(ctx context.Context) error {
	if l.observer == nil {
		return nil
	}
	db, err := l.node.database(ctx)
	if err != nil {
		return err
	}
	ports, err := db.PodPorts(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range ports {
		if !p.Withdrawn || l.observer.migrations.comes(p) {
			continue
		}
		err := db.Restore(ctx, p.Name)
		if errors.Is(err, ovs.ErrNoPort) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("give port %s of pod %s back to OVN, whose VM runs here and is not reached: %w", p.ID, p.Owner.Pod, err))
			continue
		}
		l.metrics.switchovers.WithLabelValues(switchoverRestored).Inc()
		l.log.Info("port given back to OVN: no migration that comes here holds it back any more", "port", p.ID, "pod", p.Owner.Pod)
	}
	return errors.Join(errs...)
}

// over says whether something has been left behind for longer than the grace.
func (l *leftovers) over(s suspect) bool {
	now := l.now()
	since, ok := l.since[s]
	if !ok {
		l.since[s] = now
	}
	return ok && now.Sub(since) >= l.grace
}

// orphan says whether a port belongs to no pod, where pod is the one of its name, nil if the node has none. What OVN has bound here is nobody's to take: the row goes with the pod, and
// while it is there, the controller may know more than this node. A launcher's version is its VMI's, and its name is never given twice: that it is there is enough. So it is of a static
// pod's copy, which gets another UID when somebody deletes it.
func orphan(p ovs.PortStatus, pod *corev1.Pod) bool {
	if p.Installed {
		return false
	}
	if pod == nil {
		return true
	}
	return !static(pod) && !ident.IsVMPort(p.ID) && string(pod.UID) != p.UID
}

func static(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[mirrorAnnotation]
	return ok
}

// tellOutdated says once of a static pod that it runs on with the network of an earlier copy of it in the API: its row went with that copy, and the kubelet starts nothing for the new one.
func (l *leftovers) tellOutdated(p ovs.PortStatus, pod *corev1.Pod) {
	if pod == nil || !static(pod) || p.Installed || string(pod.UID) == p.UID || l.outdated[p.Name] {
		return
	}
	l.outdated[p.Name] = true
	l.log.Warn("a static pod has no network: its copy in the API was deleted, and the kubelet made another, for which it starts nothing; move its manifest away, and back when it is gone", "pod", p.Owner.Pod, "port", p.ID)
}

// unplugged removes the veths that are on no bridge and were made for pods that are gone, and puts those back whose pods are here and that were so in the last pass too: the newest first, for a
// pod's earlier sandbox may have left one. One without an alias says nothing of whose it is, and stays.
func (l *leftovers) unplugged(ctx context.Context, seen map[suspect]bool) error {
	db, err := l.node.database(ctx)
	if err != nil {
		return err
	}
	links, err := l.host.HostSides()
	if err != nil {
		return err
	}
	slices.SortFunc(links, func(a, b netdev.HostSide) int { return cmp.Compare(b.Index, a.Index) })
	here := l.inputs.podsByUID()
	var errs []error
	for _, link := range links {
		uid, _, ok := parseAlias(link.Alias)
		if !ok {
			continue
		}
		_, err := db.Port(ctx, link.Name)
		if !errors.Is(err, ovs.ErrNoPort) {
			errs = append(errs, err)
			continue
		}
		pod := here[uid]
		s := suspect{link: link.Name, index: link.Index, wanted: pod != nil}
		_, again := l.since[s]
		seen[s] = true
		switch over := l.over(s); {
		case pod == nil && over:
			errs = append(errs, l.deleteVeth(link, uid))
		case pod != nil && again:
			errs = append(errs, l.replug(ctx, db, link, pod))
		}
	}
	return errors.Join(errs...)
}

// deleteVeth goes by the link's index: an ADD that has begun meanwhile has made another link of the name.
func (l *leftovers) deleteVeth(link netdev.HostSide, uid string) error {
	l.log.Info("removing leftover link", "link", link.Name, "pod_uid", uid, "reason", "no pod of this node has it, and no port of the bridge")
	if err := l.host.DeleteIndex(link.Index); err != nil {
		return fmt.Errorf("remove leftover link %s: %w", link.Name, err)
	}
	return nil
}
