package controller

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ipam"
)

// apiOf is a cache with some Ports, pods, and one Subnet.
type apiOf struct {
	client.Client
	ports  []v1alpha1.Port
	pods   []corev1.Pod
	subnet v1alpha1.Subnet
	lists  int
	err    error
}

func (a *apiOf) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if ports, ok := list.(*v1alpha1.PortList); ok {
		a.lists++
		ports.Items = a.ports
	}
	if pods, ok := list.(*corev1.PodList); ok {
		pods.Items = a.pods
	}
	return a.err
}

func (a *apiOf) Get(_ context.Context, _ client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	if s, ok := obj.(*v1alpha1.Subnet); ok {
		*s = a.subnet
	}
	return a.err
}

func portKey(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "ns", Name: name}
}

// portWith is a Port as an earlier controller left it; born orders the Ports by age.
func portWith(name string, born int, status v1alpha1.PortStatus) v1alpha1.Port {
	return v1alpha1.Port{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.Unix(int64(born), 0)},
		Status:     status,
	}
}

func mustSpec(t *testing.T, cidr string, exclude ...string) ipam.Spec {
	t.Helper()
	spec, err := ipam.ParseSpec([]string{cidr}, nil, exclude)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func newTestAllocations(t *testing.T, api *apiOf) *allocations {
	t.Helper()
	return newAllocations(api, nil, mustSpec(t, "100.64.0.0/16"), &queues{})
}

// queueOf lets a trigger work, and returns what has been asked for since the last call.
func queueOf(t *testing.T, tr *trigger) func() []string {
	t.Helper()
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	t.Cleanup(q.ShutDown)
	if err := tr.Start(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	return func() []string {
		var names []string
		for q.Len() > 0 {
			r, _ := q.Get()
			q.Done(r)
			names = append(names, r.Name)
		}
		slices.Sort(names)
		return names
	}
}

// A leader that begins reads the API once for all Subnets; one that has begun reads it anew, for what was there at the beginning may have gone.
func TestClaimsAreGatheredOnce(t *testing.T) {
	api := &apiOf{ports: []v1alpha1.Port{
		portWith("p", 1, v1alpha1.PortStatus{Subnet: "a", IPs: []string{"10.1.0.7"}}),
		portWith("q", 2, v1alpha1.PortStatus{Subnet: "b", IPs: []string{"10.2.0.7"}}),
		portWith("r", 3, v1alpha1.PortStatus{Subnet: "late", IPs: []string{"10.3.0.7"}}),
	}}
	a := newTestAllocations(t, api)
	set := func(name, cidr string, want int64) {
		t.Helper()
		if err := a.setSubnet(t.Context(), name, mustSpec(t, cidr)); err != nil {
			t.Fatal(err)
		}
		if used, _ := a.usage(name); used != want {
			t.Errorf("Subnet %s: %d addresses are used, want %d", name, used, want)
		}
	}
	set("a", "10.1.0.0/24", 1)
	set("b", "10.2.0.0/24", 1)
	set("c", "10.4.0.0/24", 0)
	if api.lists != 1 {
		t.Errorf("the Ports were listed %d times for three Subnets, want once", api.lists)
	}
	close(a.restore.done)
	api.ports = api.ports[:2]
	set("late", "10.3.0.0/24", 0)
	if api.lists != 2 {
		t.Errorf("the Ports were listed %d times, want once more for a Subnet that came later", api.lists)
	}
}

// A Subnet is not taken for empty because it cannot be found out who is in it.
func TestUnknownUsage(t *testing.T) {
	api := &apiOf{err: errors.New("no answer")}
	a := newTestAllocations(t, api)
	spec := mustSpec(t, "10.1.0.0/24")
	if _, err := a.dropSubnet(t.Context(), "a", spec); err == nil {
		t.Error("dropped")
	}
	if err := a.setSubnet(t.Context(), "a", spec); err == nil || errors.Is(err, errTakesAway) {
		t.Errorf("%v, want the error of the list", err)
	}
	api.err = nil
	api.ports = []v1alpha1.Port{portWith("p", 1, v1alpha1.PortStatus{Subnet: "a", IPs: []string{"10.1.0.7"}})}
	if used, err := a.dropSubnet(t.Context(), "a", spec); err != nil || used != 1 {
		t.Errorf("%d used, %v; want 1", used, err)
	}
	a.release(portHolder(portKey("p")))
	if used, err := a.dropSubnet(t.Context(), "a", spec); err != nil || used != 0 {
		t.Errorf("%d used, %v; want 0", used, err)
	}
}

// Anybody may ask for a Subnet that does not exist: nothing of that stays when the asker has gone.
func TestNothingIsLeftOfWaiting(t *testing.T) {
	a := newTestAllocations(t, &apiOf{})
	for _, subnet := range []string{"a", "b"} {
		for _, who := range []string{"p", "q"} {
			h := podHolder(portKey(subnet + who))
			if _, _, err := a.take(h, "u", subnet, request{turn: a.turn()}); !errors.Is(err, errNoSubnet) {
				t.Fatalf("%v, want %v", err, errNoSubnet)
			}
		}
	}
	if len(a.waiting) != 2 {
		t.Fatalf("waiting for %d Subnets, want 2", len(a.waiting))
	}
	for _, who := range []string{"ap", "aq", "bp", "bq"} {
		a.release(podHolder(portKey(who)))
	}
	if len(a.waiting) != 0 {
		t.Errorf("%v is left", a.waiting)
	}
}

// Whoever waits is woken by whatever may give it an address, also when that came between its choice of a Subnet and its finding it full.
func TestWaitersAreWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAllocations(t, &apiOf{})
		asked := queueOf(t, &a.queues.pods)
		full := mustSpec(t, "10.1.0.0/30", "10.1.0.2")
		wait := func(turn uint64) {
			t.Helper()
			if _, _, err := a.take(podHolder(portKey("w")), "w", "full", request{turn: turn}); !errors.Is(err, ipam.ErrFull) {
				t.Fatalf("%v, want %v", err, ipam.ErrFull)
			}
		}
		woken := func(by string) {
			t.Helper()
			synctest.Wait()
			if got := asked(); !slices.Equal(got, []string{"w"}) {
				t.Errorf("%s: asked for %v, want the one that waits", by, got)
			}
		}
		if err := a.setSubnet(t.Context(), "full", full); err != nil {
			t.Fatal(err)
		}
		wait(a.turn())
		time.Sleep(time.Minute)
		if got := asked(); len(got) > 0 {
			t.Errorf("asked for %v with nothing to be had", got)
		}
		if err := a.setSubnet(t.Context(), "other", mustSpec(t, "10.2.0.0/24")); err != nil {
			t.Fatal(err)
		}
		woken("another Subnet")
		chosen := a.turn()
		if err := a.setSubnet(t.Context(), "third", mustSpec(t, "10.3.0.0/24")); err != nil {
			t.Fatal(err)
		}
		wait(chosen)
		woken("another Subnet that came after the choice")
		wait(a.turn())
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}
		if got := a.waitingIn("pod")(t.Context(), ns); len(got) != 1 || got[0].NamespacedName != portKey("w") {
			t.Errorf("its namespace asks for %v", got)
		}
		if got := a.waitingIn("vm")(t.Context(), ns); len(got) != 0 {
			t.Errorf("its namespace asks for Ports %v", got)
		}
		a.forgetSubnet("full")
		woken("its Subnet goes")
	})
}

// Of two Ports with one MAC one has it, whichever comes first; the other is asked for when it is given back, and not before no row has it any more.
func TestMACs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mac := func(text string) v1alpha1.MAC {
			m, err := net.ParseMAC(text)
			if err != nil {
				t.Fatal(err)
			}
			return v1alpha1.MAC(m)
		}
		one, two := mac("02:00:00:00:00:01"), mac("02:00:00:00:00:02")
		a := newTestAllocations(t, &apiOf{ports: []v1alpha1.Port{
			portWith("younger", 2, v1alpha1.PortStatus{Subnet: "a", MAC: one.String()}), portWith("older", 1, v1alpha1.PortStatus{Subnet: "a", MAC: one.String()}),
			portWith("elsewhere", 3, v1alpha1.PortStatus{Subnet: "b", MAC: one.String()}),
		}})
		asked := queueOf(t, &a.queues.ports)
		if err := a.restoreMACs(t.Context()); err != nil {
			t.Fatal(err)
		}
		older, younger, third := portHolder(portKey("older")), portHolder(portKey("younger")), portHolder(portKey("third"))
		take := func(h holder, m v1alpha1.MAC, want holder) {
			t.Helper()
			if has, ok := a.takeMAC(h, switchMAC{"a", m.String()}); has != want || ok != (has == h) {
				t.Errorf("%v takes %s: it is %v's, %t; want %v's", h.key, m, has.key, ok, want.key)
			}
		}
		take(younger, one, older)
		take(older, one, older)
		take(older, two, older)
		take(third, two, older)
		synctest.Wait()
		if got := asked(); len(got) > 0 {
			t.Errorf("asked for %v while the row has its MAC", got)
		}
		a.keepMAC(older, "a", two)
		synctest.Wait()
		if got := asked(); !slices.Equal(got, []string{"younger"}) {
			t.Errorf("asked for %v, want the one that waits for %s", got, one)
		}
		take(younger, one, younger)
		a.release(older)
		synctest.Wait()
		if got := asked(); !slices.Equal(got, []string{"third"}) {
			t.Errorf("asked for %v, want the one that waits for %s", got, two)
		}
		take(third, two, third)
		a.release(younger)
		a.release(third)
		if m := a.macs; len(m.owner) != 1 || len(m.of) != 1 {
			t.Errorf("%+v, want what the Port of another Subnet has", m)
		}
		a.release(portHolder(portKey("elsewhere")))
		if m := a.macs; len(m.owner)+len(m.of)+len(m.waiting) > 0 {
			t.Errorf("left behind: %+v", m)
		}
	})
}

// A launcher is told no MTU before those of all nodes are known; one whose VM runs is told the VM's.
func TestLauncherMTUWhileRestoring(t *testing.T) {
	api := &apiOf{subnet: v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{"10.1.0.0/24"}}}}
	a := newTestAllocations(t, api)
	a.setNodeMTU("seen-first", 8942)
	r := &vmReconciler{api: api, alloc: a}
	port := portWith("p", 1, v1alpha1.PortStatus{Subnet: "a", MAC: "02:00:00:00:00:01", IPs: []string{"10.1.0.7"}})
	o := observed{vmi: &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: "v"}}}
	mtu := func() int {
		t.Helper()
		id, err := r.identity(t.Context(), o, &port)
		if err != nil {
			t.Fatal(err)
		}
		return id.MTU
	}
	if got := mtu(); got != 0 {
		t.Errorf("MTU %d while the nodes are being read, want none", got)
	}
	running := v1alpha1.Identity{PodUID: "l", Subnet: "a", MTU: 1442, VMI: &v1alpha1.Instance{Name: "vm", UID: "v"}, MAC: v1alpha1.MAC{2, 0, 0, 0, 0, 1}}
	base, err := r.identity(t.Context(), o, &port)
	if err != nil {
		t.Fatal(err)
	}
	running.IPs, running.Gateways = base.IPs, base.Gateways
	launcher := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "l", Annotations: map[string]string{v1alpha1.IdentityAnnotation: running.Text()}}}
	o.pods = []*corev1.Pod{launcher}
	if got := mtu(); got != 1442 {
		t.Errorf("MTU %d, want the running VM's", got)
	}
	o.pods = nil
	a.setNodeMTU("seen-later", 1442)
	close(a.restore.done)
	if got := mtu(); got != 1442 {
		t.Errorf("MTU %d, want the smallest of all nodes", got)
	}
}
