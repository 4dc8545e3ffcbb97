package controller

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// podWith is a pod that has an address and the MAC that follows from it; one that is born at 0 has neither.
func podWith(name string, born int64, ip string) corev1.Pod {
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.Unix(born, 0)}}
	if born == 0 {
		return pod
	}
	addr := netip.MustParseAddr(ip)
	id := v1alpha1.Identity{
		PodUID: name, Subnet: "a", IPs: []netip.Prefix{netip.PrefixFrom(addr, 64)}, Gateways: []netip.Addr{netip.MustParseAddr("fd00:a::1")}, MAC: v1alpha1.MAC(ident.MAC(addr)), MTU: 1442,
	}
	pod.Annotations = map[string]string{v1alpha1.IdentityAnnotation: id.Text()}
	return pod
}

// Two pods of a switch never have one MAC, though an IPv6 address was asked for whose last bytes are another's; who has a MAC keeps it, also when the controller starts again.
func TestPodMACs(t *testing.T) {
	const near, far = "fd00:a::7", "fd00:a::1:0:7"
	derived := ident.MAC(netip.MustParseAddr(near)).String()
	recorder := events.NewFakeRecorder(4)
	r := &podReconciler{events: recorder, log: slog.New(slog.DiscardHandler)}
	decide := func(pod corev1.Pod, ip string, w wishes) (string, error) {
		n := nicRequest{holder: podHolder(client.ObjectKeyFromObject(&pod)), wishes: w, current: identityOf(&pod)}
		addr := netip.MustParseAddr(ip)
		mac, err := r.decideMAC(&pod, n, "a", []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())})
		return mac.String(), err
	}
	asked := func(name, ip string) string {
		t.Helper()
		mac, err := decide(podWith(name, 0, ""), ip, wishes{})
		if err != nil {
			t.Fatalf("pod %s: %v", name, err)
		}
		return mac
	}

	r.alloc = newTestAllocations(t, &apiOf{pods: []corev1.Pod{podWith("younger", 3, far), podWith("older", 2, near)}})
	if err := r.alloc.restoreMACs(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mac, err := decide(podWith("older", 2, near), near, wishes{}); err != nil || mac != derived {
		t.Errorf("the pod that had MAC %s has %s (%v)", derived, mac, err)
	}
	if mac, err := decide(podWith("younger", 3, far), far, wishes{}); !errors.Is(err, errWaiting) || !strings.Contains(<-recorder.Events, reasonMACTaken) {
		t.Errorf("of two pods that had one MAC the younger has %s (%v), want it to be told", mac, err)
	}
	if mac := asked("third", "fd00:a::2:0:7"); mac == derived || strings.HasPrefix(mac, derived[:5]) {
		t.Errorf("a pod whose address ends as another's has %s, which follows from that", mac)
	}

	r.alloc = newTestAllocations(t, &apiOf{})
	first, spare := asked("first", far), asked("second", near)
	if first != derived || spare == derived {
		t.Errorf("two pods whose addresses end alike have %s and %s, want two", first, spare)
	}
	r.alloc.release(podHolder(portKey("first")))
	if again := asked("second", near); again != spare {
		t.Errorf("a pod that has been given %s is given %s", spare, again)
	}
	if mac, err := decide(podWith("asks", 0, ""), "fd00:a::9", wishes{mac: spare}); !errors.Is(err, errWaiting) || !strings.Contains(<-recorder.Events, reasonMACTaken) {
		t.Errorf("a pod has %s (%v), which another has", mac, err)
	}
	if mac := asked("v4", "10.0.0.7"); mac != ident.MAC(netip.MustParseAddr("10.0.0.7")).String() || len(r.alloc.macs.of[podHolder(portKey("v4"))]) > 0 {
		t.Errorf("a pod with an IPv4 address has %s, and claims %v", mac, r.alloc.macs.of)
	}
}
