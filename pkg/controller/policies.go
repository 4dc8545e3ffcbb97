package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/policy"
)

// compareRetry is how long to wait when the rows of policies cannot be compared with the database.
const compareRetry = time.Second

// verifyTries is how often in a row the database must differ to be mended.
const verifyTries = 3

// policies is what NetworkPolicies come to, and whom they are about. The reconcilers of pods, VMs, nodes, namespaces and policies tell it what they see, and make its
// changes (pending) part of the transaction that they write: a port is in its groups from its first moment, and an address is in no set any more when it is
// given back. It is a manager.Runnable, which compares everything with the database when what it holds is not known. It is safe for concurrent use.
type policies struct {
	nb     *ovn.NB
	virt   *kubevirt
	writer *ovn.PolicyWriter
	log    *slog.Logger
	// handover says whose connections move along.
	handover handover
	now      func() time.Time
	// again receives a value when there is something to write that nobody has asked for.
	again chan struct{}
	// restored is closed when everything that exists has been told.
	restored chan struct{}
	// compared: what the database has was made right once.
	compared atomic.Bool

	mu    sync.Mutex
	index *policy.Index
	// vms are the UIDs of the Ports that have VMs' interfaces, as their own reconciler says. The index has no VM's interface but these.
	vms map[ident.PortName]types.UID
}

func newPolicies(c Config, nb *ovn.NB, virt *kubevirt, join []netip.Prefix) *policies {
	p := &policies{nb: nb, virt: virt, log: c.Logger, handover: newHandover(c), now: time.Now, again: make(chan struct{}, 1), restored: make(chan struct{})}
	p.index, p.vms = policy.New(policy.Config{Join: join}), map[ident.PortName]types.UID{}
	p.writer = nb.NewPolicyWriter(p, p.wake)
	return p
}

func (p *policies) wake() {
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// Take implements ovn.PolicySource, as the next two do.
func (p *policies) Take() policy.Changes {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index.Take()
}

// Rows are all rows.
func (p *policies) Rows() policy.Rows {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index.Rows()
}

// GroupsOf are the groups of a port.
func (p *policies) GroupsOf(port ident.PortName) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index.GroupsOf(port)
}

// tell changes what is known. What follows is written with pending.
func (p *policies) tell(change func(*policy.Index)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p.index)
}

// pending writes what has been told, and puts the ports that the same transaction makes into their groups. It comes after the change that makes a port.
func (p *policies) pending() ovn.Change { return p.writer.Pending() }

// wait returns nil when everything that exists has been told: what a reconciler tells before would be overwritten by what was read earlier.
func (p *policies) wait(ctx context.Context) error {
	select {
	case <-p.restored:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the NetworkPolicies to be read: %w", context.Cause(ctx))
	}
}

// restore tells everything that exists. It is called once, on the leader.
func (p *policies) restore(ctx context.Context, api client.Reader) error {
	err := errors.Join(
		each(ctx, api, &corev1.NamespaceList{}, func(l *corev1.NamespaceList) {
			for i := range l.Items {
				p.tell(func(x *policy.Index) { x.SetNamespace(l.Items[i].Name, l.Items[i].Labels) })
			}
		}),
		each(ctx, api, &networkingv1.NetworkPolicyList{}, func(l *networkingv1.NetworkPolicyList) {
			for i := range l.Items {
				p.tell(func(x *policy.Index) { x.SetPolicy(&l.Items[i]) })
			}
		}),
		each(ctx, api, &corev1.NodeList{}, func(l *corev1.NodeList) {
			for i := range l.Items {
				if join, err := v1alpha1.ParseJoin(l.Items[i].Annotations[v1alpha1.JoinAnnotation]); err == nil {
					p.setNode(&l.Items[i], join)
				}
			}
		}),
		each(ctx, api, &corev1.PodList{}, func(l *corev1.PodList) {
			for i := range l.Items {
				p.restorePod(&l.Items[i])
			}
		}),
		p.restoreVMs(ctx, api),
	)
	if err != nil {
		return err
	}
	close(p.restored)
	return nil
}

// each lists objects, which must not be changed.
func each[L client.ObjectList](ctx context.Context, api client.Reader, list L, do func(L)) error {
	if err := api.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list %T for NetworkPolicies: %w", list, err)
	}
	do(list)
	return nil
}

// restorePod tells of a pod that has its addresses. A launcher's are its VM's.
func (p *policies) restorePod(pod *corev1.Pod) {
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil || id.PodUID != string(pod.UID) || id.VMI != nil || !networked(pod) {
		return
	}
	p.setPod(pod, id)
}

func (p *policies) restoreVMs(ctx context.Context, api client.Reader) error {
	var list v1alpha1.PortList
	if err := api.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Ports for NetworkPolicies: %w", err)
	}
	rows := map[ident.PortName]*nbdb.LogicalSwitchPort{}
	for i := range list.Items {
		name := rowName(&list.Items[i])
		var err error
		if rows[name], err = p.nb.Port(ctx, name); err != nil {
			return err
		}
	}
	for name, port := range holders(list.Items, rows) {
		vmi, err := p.virt.vmi(ctx, api, vmKey(port))
		if err != nil {
			return err
		}
		p.setVM(port, vmi, parseAddrs(port.Status.IPs))
		if rows[name] != nil {
			p.restoreJourney(rows[name])
		}
	}
	return nil
}

// setPod tells of a pod whose node is known, by each of its interfaces.
func (p *policies) setPod(pod *corev1.Pod, id v1alpha1.Identity) {
	if pod.Spec.NodeName == "" {
		return
	}
	p.tell(func(x *policy.Index) {
		for _, at := range attachments(pod, id) {
			x.SetPod(policy.Pod{
				Port: ident.PodPort(pod.Namespace, pod.Name, at.network), Namespace: pod.Namespace, Labels: pod.Labels, IPs: addrsOf(at.IPs), Ports: podPorts(pod),
			})
		}
	})
}

func (p *policies) deletePort(port ident.PortName) {
	p.tell(func(x *policy.Index) { x.DeletePod(port) })
}

// setVM tells of a VM's interface, and that it is this Port's until forgetVM: it is for the Port's own reconciler alone.
// Its labels are its VMI's, whatever its launchers say; without a VMI it is nobody.
func (p *policies) setVM(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance, ips []netip.Addr) {
	p.tell(func(x *policy.Index) {
		p.vms[rowName(port)] = port.UID
		indexVM(x, port, vmi, ips)
	})
}

// followVM is setVM for who merely sees the Port. It says whether the interface is the Port's; where it is not, nothing is told:
// the Port may have been let go since it was read, and its addresses be another's.
func (p *policies) followVM(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance, ips []netip.Addr) (its bool) {
	p.tell(func(x *policy.Index) {
		if its = p.vms[rowName(port)] == port.UID; its {
			indexVM(x, port, vmi, ips)
		}
	})
	return its
}

func indexVM(x *policy.Index, port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance, ips []netip.Addr) {
	if vmi == nil {
		x.DeletePod(rowName(port))
		return
	}
	x.SetPod(policy.Pod{Port: rowName(port), Namespace: vmi.Namespace, Labels: vmi.Labels, IPs: ips, Ports: vmPorts(vmi)})
}

// forgetVM tells that a Port has a VM's interface no more. It does nothing where that is another Port's by now. It comes before the Port's addresses are given back.
func (p *policies) forgetVM(name ident.PortName, uid types.UID) {
	p.tell(func(x *policy.Index) {
		if p.vms[name] == uid {
			delete(p.vms, name)
			x.DeletePod(name)
		}
	})
}

// vmsOf are the VMs' interfaces that a Port has, whether or not they have rows.
func (p *policies) vmsOf(uid types.UID) []ident.PortName {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []ident.PortName
	for name, has := range p.vms {
		if has == uid {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// setNode tells of a node and of what it sends under on the join network.
func (p *policies) setNode(node *corev1.Node, join v1alpha1.Join) {
	h := policy.Host{Node: node.Name, Own: addrsOf(join.IPs), Clients: addrsOf(join.Clients)}
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil { // a host's name is no address
			h.IPs = append(h.IPs, ip)
		}
	}
	p.tell(func(x *policy.Index) { x.SetHost(h) })
}

// podPorts are the named ports of a pod's containers, those included that run beside them from the start.
func podPorts(pod *corev1.Pod) []policy.PodPort {
	var out []policy.PodPort
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			for _, port := range containers[i].Ports {
				out = append(out, policy.PodPort{Name: port.Name, Protocol: port.Protocol, Number: port.ContainerPort})
			}
		}
	}
	return out
}

// vmPorts are the named ports of a VM's interface on the pod network.
func vmPorts(vmi *kubevirtv1.VirtualMachineInstance) []policy.PodPort {
	var out []policy.PodPort
	for i := range vmi.Spec.Domain.Devices.Interfaces {
		nic := &vmi.Spec.Domain.Devices.Interfaces[i]
		if !onPodNetwork(vmi, nic.Name) {
			continue
		}
		for _, port := range nic.Ports {
			if port.Name != "" {
				out = append(out, policy.PodPort{Name: port.Name, Protocol: corev1.Protocol(port.Protocol), Number: port.Port})
			}
		}
	}
	return out
}

// Start implements manager.Runnable.
func (p *policies) Start(ctx context.Context) error {
	if p.wait(ctx) != nil {
		return nil //nolint:nilerr // told to end
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		case <-p.again:
		}
		err := p.nb.Apply(ctx, p.writer.Compare(), p.pending())
		if err == nil {
			p.compared.Store(true)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		p.log.Error("NetworkPolicies are not written: they are compared with the northbound database and tried again", "error", err, "in", compareRetry)
		_ = p.nb.Apply(ctx, p.writer.Stale()) // of its own it fails only with the context
		select {                              // whoever asks meanwhile: it would be refused again
		case <-ctx.Done():
			return nil
		case <-time.After(compareRetry):
		}
		retry.Reset(0)
	}
}

// verify looks whether the database has what it should, and lets it be mended. What is being written at the moment looks like a difference too, and is none.
func (p *policies) verify(ctx context.Context) error {
	for range verifyTries {
		differs, err := p.writer.Differs(ctx, p.nb)
		if err != nil || !differs {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(compareRetry):
		}
	}
	p.log.Warn("the northbound rows of NetworkPolicies are not as they should be: somebody has changed them; they are mended")
	if err := p.nb.Apply(ctx, p.writer.Stale()); err != nil {
		return err
	}
	p.wake()
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (p *policies) NeedLeaderElection() bool { return true }
