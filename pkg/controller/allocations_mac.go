package controller

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// macs is who has which MAC, written as v1alpha1.MAC writes it, and who waits for one. Pods are not in it: theirs follow from their addresses.
type macs struct {
	owner   map[string]holder
	of      map[holder][]string
	waiting map[string]map[holder]bool
}

func newMACs() macs {
	return macs{owner: map[string]holder{}, of: map[holder][]string{}, waiting: map[string]map[holder]bool{}}
}

// take gives h a MAC besides those that it has, unless another has it.
func (m *macs) take(h holder, mac string) (owner holder, ok bool) {
	if owner, taken := m.owner[mac]; taken {
		return owner, owner == h
	}
	m.owner[mac] = h
	m.of[h] = append(m.of[h], mac)
	return h, true
}

// wait lets h be woken when a MAC is given back.
func (m *macs) wait(h holder, mac string) {
	if m.waiting[mac] == nil {
		m.waiting[mac] = map[holder]bool{}
	}
	m.waiting[mac][h] = true
}

// release takes back all that h has but one, and wakes those who wait for it.
func (m *macs) release(h holder, but string, wake func(holder)) {
	var kept []string
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

// takeMAC gives a Port a MAC unless another Port has it, which it then returns: the Port is enqueued when that one gives it back. What the Port had before it
// keeps until keepMAC, as its row does.
func (a *allocations) takeMAC(h holder, mac v1alpha1.MAC) (other holder, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	other, ok = a.macs.take(h, mac.String())
	if !ok {
		a.macs.wait(h, mac.String())
	}
	return other, ok
}

// keepMAC takes back what a Port has besides the MAC that its row now says.
func (a *allocations) keepMAC(h holder, mac v1alpha1.MAC) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.macs.release(h, mac.String(), a.enqueue)
}

// restoreMACs takes back the MACs that Ports have by their status. Of two that have the same the older one keeps it.
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
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range ports {
		if p.Status.MAC != "" {
			a.macs.take(portHolder(client.ObjectKeyFromObject(p)), p.Status.MAC)
		}
	}
	return nil
}
