package controller

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// switchMAC is a MAC, written as v1alpha1.MAC writes it, on the switch of a Subnet. On another switch it may be another's.
type switchMAC struct{ subnet, mac string }

// macs is who has which MAC, and who waits for one. Pods of IPv4 that ask for none are not in it: theirs follow from their addresses.
type macs struct {
	owner   map[switchMAC]holder
	of      map[holder][]switchMAC
	waiting map[switchMAC]map[holder]bool
}

func newMACs() macs {
	return macs{owner: map[switchMAC]holder{}, of: map[holder][]switchMAC{}, waiting: map[switchMAC]map[holder]bool{}}
}

// take gives h a MAC besides those that it has, unless another has it.
func (m *macs) take(h holder, mac switchMAC) (owner holder, ok bool) {
	if owner, taken := m.owner[mac]; taken {
		return owner, owner == h
	}
	m.owner[mac] = h
	m.of[h] = append(m.of[h], mac)
	return h, true
}

// wait lets h be woken when a MAC is given back.
func (m *macs) wait(h holder, mac switchMAC) {
	if m.waiting[mac] == nil {
		m.waiting[mac] = map[holder]bool{}
	}
	m.waiting[mac][h] = true
}

// release takes back all that h has but one, and wakes those who wait for it.
func (m *macs) release(h holder, but switchMAC, wake func(holder)) {
	var kept []switchMAC
	for _, mac := range m.of[h] {
		if mac == but {
			kept = append(kept, mac)
			continue
		}
		delete(m.owner, mac)
		for w := range m.waiting[mac] {
			wake(w)
		}
		delete(m.waiting, mac)
	}
	if m.of[h] = kept; kept == nil {
		delete(m.of, h)
	}
	for mac, waiting := range m.waiting {
		if delete(waiting, h); len(waiting) == 0 {
			delete(m.waiting, mac)
		}
	}
}

// claimMAC keeps one from answering for another: it gives a holder a MAC in its Subnet, or says why it cannot have it, and enqueues it when it can. MACs of the gateways, and those
// of pods that ask for none, follow from their addresses. What a holder had before it keeps until keepMAC, as its row does.
func (a *allocations) claimMAC(h holder, subnet string, mac v1alpha1.MAC, ips []netip.Prefix) (reason, message string) {
	if ident.Derived(net.HardwareAddr(mac)) && mac.String() != ident.MAC(ips[0].Addr()).String() {
		return reasonMACReserved, fmt.Sprintf("MAC %s is in the range from which Godwit makes those of pods and gateways: choose one that begins otherwise than %s", mac, mac.String()[:5])
	}
	if mac[0]&1 != 0 {
		return v1alpha1.ReasonInvalid, fmt.Sprintf("MAC %s is a multicast address: choose one whose second digit is even", mac)
	}
	if !slices.ContainsFunc(mac, func(b byte) bool { return b != 0 }) {
		return v1alpha1.ReasonInvalid, fmt.Sprintf("MAC %s is nobody's: choose another", mac)
	}
	if other, ok := a.takeMAC(h, switchMAC{subnet, mac.String()}); !ok {
		return reasonMACTaken, fmt.Sprintf("MAC %s is that of %s in Subnet %s: choose another", mac, other, subnet)
	}
	return "", ""
}

// takeMAC gives a holder a MAC unless another has it, which it then returns: the holder is enqueued when that one gives it back.
func (a *allocations) takeMAC(h holder, mac switchMAC) (other holder, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	other, ok = a.macs.take(h, mac)
	if !ok {
		a.macs.wait(h, mac)
	}
	return other, ok
}

// makeMAC gives a holder that asks for none a MAC that is made of its first address, and nobody else's in the Subnet: the first such from a number on, 0 for ident.MAC's. One that it has
// been given it keeps, though another may be free by now: somebody may know of it.
func (a *allocations) makeMAC(h holder, subnet string, addr netip.Addr, from int) v1alpha1.MAC {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, has := range a.macs.of[h] {
		if mac, err := net.ParseMAC(has.mac); err == nil && has.subnet == subnet && ident.Spare(mac) {
			return v1alpha1.MAC(mac)
		}
	}
	for n := from; ; n++ {
		mac := v1alpha1.MAC(ident.MAC(addr))
		if n > 0 {
			mac = v1alpha1.MAC(ident.SpareMAC(addr, n))
		}
		if _, ok := a.macs.take(h, switchMAC{subnet, mac.String()}); ok {
			return mac
		}
	}
}

// keepMAC takes back what a holder has besides the MAC that its row now says.
func (a *allocations) keepMAC(h holder, subnet string, mac v1alpha1.MAC) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.macs.release(h, switchMAC{subnet, mac.String()}, a.enqueue)
}

// restoreMACs takes back the MACs that Ports have by their status, and pods by their identity. Of two that have the same the older one keeps it: pods that asked for theirs come before Ports,
// and those that did not after them.
func (a *allocations) restoreMACs(ctx context.Context) error {
	var list v1alpha1.PortList
	if err := a.api.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Ports to restore their MACs: %w", err)
	}
	ports := make([]*v1alpha1.Port, 0, len(list.Items))
	for i := range list.Items {
		ports = append(ports, &list.Items[i])
	}
	slices.SortFunc(ports, olderPort)
	var podList corev1.PodList
	if err := a.api.List(ctx, &podList, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods to restore their MACs: %w", err)
	}
	pods := make([]*corev1.Pod, 0, len(podList.Items))
	for i := range podList.Items {
		pods = append(pods, &podList.Items[i])
	}
	slices.SortStableFunc(pods, func(x, y *corev1.Pod) int { return x.CreationTimestamp.Compare(y.CreationTimestamp.Time) })
	a.mu.Lock()
	defer a.mu.Unlock()
	var made []attachment
	for _, p := range pods {
		for _, at := range attachments(p, identityOf(p)) {
			if ownMAC(p, at.Identity) {
				a.macs.take(at.holder, switchMAC{at.Subnet, at.MAC.String()})
			} else if networked(p) && len(at.IPs) > 0 && at.IPs[0].Addr().Is6() {
				made = append(made, at)
			}
		}
	}
	for _, p := range ports {
		if p.Status.MAC != "" {
			a.macs.take(portHolder(client.ObjectKeyFromObject(p)), switchMAC{p.Status.Subnet, p.Status.MAC})
		}
	}
	for _, at := range made {
		a.macs.take(at.holder, switchMAC{at.Subnet, at.MAC.String()})
	}
	return nil
}

// ownMAC says whether a pod has another MAC than the one that follows from its address: one that it has asked for, or that was made because another had that. A VM's launcher has the VM's.
func ownMAC(pod *corev1.Pod, id v1alpha1.Identity) bool {
	return networked(pod) && id.PodUID == string(pod.UID) && id.VMI == nil && len(id.IPs) > 0 && id.MAC.String() != ident.MAC(id.IPs[0].Addr()).String()
}
