package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// maxAlias is how many characters the kernel takes as a link's alias.
const maxAlias = 255

// aliasOf is the alias of the host's side of a veth: whose it is, and what else its port's row has that cannot be had from the API. The latter is left out where it does not fit.
func aliasOf(uid string, owner ovs.Owner) string {
	words := []string{owner.Container, owner.IfName, owner.Netns, owner.Conf}
	alias := ident.PodAlias + uid + " " + strings.Join(words, " ")
	if len(alias) > maxAlias || slices.ContainsFunc(words, func(w string) bool { return len(strings.Fields(w)) != 1 }) {
		return ident.PodAlias + uid
	}
	return alias
}

// parseAlias reads what aliasOf has written; owner has no Pod, and is zero where the alias has the UID alone. ok is false if it says nothing of whose the link is.
func parseAlias(alias string) (uid string, owner ovs.Owner, ok bool) {
	rest, ok := strings.CutPrefix(alias, ident.PodAlias)
	words := strings.Fields(rest)
	if !ok || len(words) == 0 {
		return "", ovs.Owner{}, false
	}
	if len(words) == 5 {
		owner = ovs.Owner{Container: words[1], IfName: words[2], Netns: words[3], Conf: words[4]}
	}
	return words[0], owner, true
}

// replug gives a veth its port again whose pod is here: somebody has removed the bridge, or the database, under it, and the runtime makes no ADD for a pod that runs. What has another port
// meanwhile, of a later sandbox or launcher, is passed over.
func (l *leftovers) replug(ctx context.Context, db switchDB, link netdev.HostSide, pod *corev1.Pod) error {
	if l.node.mtu.Load() == 0 {
		return nil // the node has not been ready yet: what a pod may have is not known
	}
	_, owner, _ := parseAlias(link.Alias)
	ref := wire.Pod{Namespace: pod.Namespace, Name: pod.Name}
	unlock, err := l.locks.lock(ctx, owner.Container)
	if err != nil {
		return fmt.Errorf("container %s: another operation on it has not ended: %w", owner.Container, err)
	}
	defer unlock()
	ports, err := db.PodPorts(ctx)
	if err != nil {
		return err
	}
	if owner == (ovs.Owner{}) {
		if slices.ContainsFunc(ports, func(p ovs.PortStatus) bool { return p.Owner.Pod == ref.String() }) {
			return nil // which of its links has none, nobody can tell
		}
		return fmt.Errorf("pod %s has no network: its link %s is on no bridge, somebody has removed %s or its port, and the link does not say which port it had: delete the pod",
			ref, link.Name, ident.IntegrationBridge)
	}
	at := &attachment{db: db, log: l.log, req: &wire.Request{
		Command: wire.Add, Conf: owner.Conf, Network: ident.DefaultNetwork, ContainerID: owner.Container, Netns: owner.Netns, IfName: owner.IfName, Pod: ref,
	}}
	if at.id, _, err = lookIdentity(pod, ref, l.here(at.req)); err != nil {
		return fmt.Errorf("link %s is on no bridge, and is not put back: %w", link.Name, err)
	}
	l.plan(at)
	if slices.ContainsFunc(ports, func(p ovs.PortStatus) bool { return p.Name == link.Name || p.ID == at.port.ID }) || l.leaves(at, pod) {
		return nil
	}
	// A DEL may have had the lock meanwhile.
	links, err := l.host.HostSides()
	if err != nil || !slices.Contains(links, link) {
		return err
	}
	if err := db.EnsurePort(ctx, at.port); err != nil {
		return fmt.Errorf("pod %s: put link %s back on %s: %w", ref, link.Name, ident.IntegrationBridge, err)
	}
	l.log.Warn("port made again: somebody had removed it, and the pod had no network", "pod", ref.String(), "port", at.port.ID, "link", link.Name)
	return nil
}

// leaves says whether a launcher is to have no port of its own accord: it is being deleted, or a migration may still end with it, or has failed, and it is for OVN and the source's agent to say
// when the VM is here.
func (l *leftovers) leaves(at *attachment, pod *corev1.Pod) bool {
	if at.id.VMI == nil {
		return false
	}
	return pod.DeletionTimestamp != nil || l.observer != nil && l.observer.migrations.comes(ovs.PortStatus{Port: at.port})
}
