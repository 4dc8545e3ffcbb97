package service

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// move plays a VM with address 10.0.0.1 behind shop/web. It checks what the Service has after every step.
type move struct {
	t      *testing.T
	x      *Index
	slices []*discoveryv1.EndpointSlice
}

func startMove(t *testing.T) *move {
	m := &move{t: t, x: New()}
	m.vm(VM{Node: "n1"})
	m.lists("10.0.0.1 n1 ready")
	m.has("10.0.0.1:8080 n1")
	return m
}

func (m *move) vm(vm VM) { m.x.SetVM(netip.MustParseAddr("10.0.0.1"), vm) }

func (m *move) lists(endpoints ...string) {
	m.slices = slices1(endpoints...)
	m.x.Set(aService(), m.slices)
}

func (m *move) has(endpoints ...string) {
	m.t.Helper()
	m.x.Take()
	if endpoints == nil {
		endpoints = []string{}
	}
	want(m.t, "endpoints", endpointsOf(m.t, m.x, web), endpoints)
}

const both = "10.0.0.1:8080 n1"

func TestHoldSucceeds(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n1", Hold: Moving})
	m.lists("10.0.0.1 n1 ready", "10.0.0.1 n2 unready")
	m.has(both)
	m.lists("10.0.0.1 n1 unready", "10.0.0.1 n2 unready")
	m.has(both)
	m.vm(VM{Node: "n2", Hold: Arriving})
	m.has("10.0.0.1:8080 n2")
	m.lists("10.0.0.1 n1 gone", "10.0.0.1 n2 unready")
	m.has("10.0.0.1:8080 n2")
	m.lists("10.0.0.1 n2 ready")
	m.has("10.0.0.1:8080 n2")
	m.lists("10.0.0.1 n2 unready") // it has been ready: this is no flap
	m.has()
	m.lists("10.0.0.1 n2 ready")
	m.vm(VM{Node: "n2"})
	m.has("10.0.0.1:8080 n2")
}

func TestHoldRollsBack(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n1", Hold: Moving})
	m.lists("10.0.0.1 n1 unready", "10.0.0.1 n2 ready")
	m.has(both)
	m.lists("10.0.0.1 n1 unready", "10.0.0.1 n2 gone")
	m.vm(VM{Node: "n1", Hold: Arriving})
	m.has(both)
	m.lists("10.0.0.1 n1 ready")
	m.has(both)
	m.lists("10.0.0.1 n1 unready")
	m.has()
}

func TestHoldIsBounded(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n1", Hold: Moving})
	m.lists("10.0.0.1 n1 unready", "10.0.0.1 n2 unready")
	m.has(both)
	m.vm(VM{Node: "n2", Hold: Arriving})
	m.has("10.0.0.1:8080 n2")
	m.vm(VM{Node: "n2"}) // the grace is over
	m.has()
	m.lists("10.0.0.1 n2 ready") // late
	m.has("10.0.0.1:8080 n2")
}

func TestHoldOfUnlisted(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n1", Hold: Moving})
	m.lists()
	m.has(both)
	m.x.Set(aService(), nil) // no EndpointSlice at all
	m.has(both)
	m.vm(VM{Node: "n2", Hold: Arriving})
	m.has("10.0.0.1:8080 n2")
	m.lists("10.0.0.2 n3 ready")
	m.has("10.0.0.1:8080 n2", "10.0.0.2:8080 n3")
	m.vm(VM{Node: "n2"})
	m.has("10.0.0.2:8080 n3")
	if len(m.x.users) != 1 {
		t.Errorf("the index still finds the Service by %v", m.x.users)
	}
}

func TestHoldIsOnlyForWhatWasReady(t *testing.T) {
	m := startMove(t)
	m.lists("10.0.0.1 n1 unready")
	m.has()
	m.vm(VM{Node: "n1", Hold: Moving})
	m.has()
	m.lists("10.0.0.1 n1 ready") // becomes ready on the way
	m.has(both)
	m.lists("10.0.0.1 n1 unready")
	m.has(both)
}

func TestHoldOverARestart(t *testing.T) {
	x := New()
	x.SetVM(netip.MustParseAddr("10.0.0.1"), VM{Node: "n1", Hold: Moving})
	x.Set(aService(), slices1("10.0.0.1 n1 unready", "10.0.0.1 n2 unready"))
	m := &move{t: t, x: x}
	m.has(both) // nobody knows what it was: the service goes on
	m.vm(VM{Node: "n2", Hold: Arriving})
	m.has("10.0.0.1:8080 n2")
	m.vm(VM{Node: "n2"})
	m.has()
}

func TestHoldTwiceInARow(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n1", Hold: Moving})
	m.vm(VM{Node: "n2", Hold: Arriving})
	m.lists("10.0.0.1 n2 ready")
	m.has("10.0.0.1:8080 n2")
	m.vm(VM{Node: "n2", Hold: Moving}) // not seen by any Take
	m.vm(VM{Node: "n3", Hold: Arriving})
	m.lists("10.0.0.1 n2 unready", "10.0.0.1 n3 unready")
	m.has("10.0.0.1:8080 n3")
}

func TestHoldOfAnotherPortNumber(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n1", Hold: Moving})
	s := slice("10.0.0.1 n1 ready")
	s.Ports[0].Port = ptr(int32(9090))
	m.x.Set(aService(), []*discoveryv1.EndpointSlice{s})
	m.has("10.0.0.1:9090 n1")
}

func TestHoldAndTheOthers(t *testing.T) {
	m := startMove(t)
	m.lists("10.0.0.1 n1 ready", "10.0.0.2 n2 ready")
	m.has(both, "10.0.0.2:8080 n2")
	m.vm(VM{Node: "n1", Hold: Moving})
	m.lists("10.0.0.1 n1 unready", "10.0.0.2 n2 unready")
	m.has(both)
	m.x.DeleteVM(netip.MustParseAddr("10.0.0.1")) // deleted while it moved
	m.has()
}

func TestAnchorOfAVM(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n2", Anchor: "n1"})
	m.has("10.0.0.1:8080 n2 by n1")
	s, _ := m.x.Service(web)
	want(t, "local endpoints", []int{s.LocalEndpoints("n1"), s.LocalEndpoints("n2")}, []int{1, 0})
	v4 := netip.IPv4Unspecified()
	want(t, "On and AnchoredAt", []int{len(s.Ports[0].On(v4, "n1")), len(s.Ports[0].On(v4, "n2")), len(s.Ports[0].AnchoredAt(v4, "n1")), len(s.Ports[0].AnchoredAt(v4, "n2"))}, []int{0, 1, 1, 0})
}

func aPort(name string, phase v1alpha1.PortPhase, node string, ips ...string) *v1alpha1.Port {
	return &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Status: v1alpha1.PortStatus{Phase: phase, Node: node, IPs: ips}}
}

func TestVMs(t *testing.T) {
	x, t0 := New(), time.Unix(1000, 0)
	v := NewVMs(x)
	a, a6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	tell := func(at time.Duration, phase v1alpha1.PortPhase, node string, again time.Duration, hold Hold) {
		t.Helper()
		want(t, "again", v.Set(aPort("db", phase, node, "10.0.0.1", "fd00::1"), t0.Add(at)), again)
		want(t, "VM", []VM{x.vms[a], x.vms[a6]}, []VM{{Node: node, Hold: hold}, {Node: node, Hold: hold}})
	}
	tell(0, v1alpha1.PortReserved, "", 0, NotHeld)
	tell(0, v1alpha1.PortAttached, "n1", 0, NotHeld)
	tell(0, v1alpha1.PortMigrating, "n1", unreadyCheck, Moving)
	tell(10*time.Second, v1alpha1.PortAttached, "n2", ArrivalGrace, Arriving)
	tell(20*time.Second, v1alpha1.PortAttached, "n2", ArrivalGrace-10*time.Second, Arriving)
	tell(30*time.Second, v1alpha1.PortMigrating, "n2", unreadyCheck, Moving)
	tell(40*time.Second, v1alpha1.PortAttached, "n3", ArrivalGrace, Arriving)
	tell(40*time.Second+ArrivalGrace, v1alpha1.PortAttached, "n3", 0, NotHeld)
	tell(200*time.Second, v1alpha1.PortMigrating, "n3", unreadyCheck, Moving)
	tell(210*time.Second, v1alpha1.PortReserved, "", 0, NotHeld) // stopped while it moved
	tell(220*time.Second, v1alpha1.PortAttached, "n3", 0, NotHeld)
	tell(230*time.Second, v1alpha1.PortMigrating, "n3", unreadyCheck, Moving)
	tell(240*time.Second, v1alpha1.PortBound, "", 0, NotHeld) // died while it moved
	tell(250*time.Second, v1alpha1.PortAttached, "n2", 0, NotHeld)

	away := aPort("db", v1alpha1.PortAttached, "n4", "10.0.0.1", "fd00::1")
	away.Status.EgressNode = "n1"
	v.Set(away, t0)
	want(t, "a VM that has moved", x.vms[a], VM{Node: "n4", Anchor: "n1"})

	v.Set(aPort("new", v1alpha1.PortAttached, "n4", "10.0.0.1"), t0) // the address is another's now
	v.Delete(types.NamespacedName{Namespace: "shop", Name: "db"})
	want(t, "VMs", x.vms, map[netip.Addr]VM{a: {Node: "n4"}})
	v.Set(aPort("new", v1alpha1.PortAttached, "n4", "10.0.0.2"), t0)
	want(t, "VMs", x.vms, map[netip.Addr]VM{netip.MustParseAddr("10.0.0.2"): {Node: "n4"}})
	v.Delete(types.NamespacedName{Namespace: "shop", Name: "new"})
	v.Delete(types.NamespacedName{Namespace: "shop", Name: "never"})
	want(t, "VMs", []int{len(x.vms), len(v.owners), len(v.ports)}, []int{0, 0, 0})
}

// TestHoldOfAStuckMigration: what is ready nowhere for minutes is not held any longer, and is again when it has been ready.
func TestHoldOfAStuckMigration(t *testing.T) {
	m := &move{t: t, x: New()}
	v, now := NewVMs(m.x), time.Unix(1000, 0)
	tell := func(after time.Duration, phase v1alpha1.PortPhase) {
		now = now.Add(after)
		v.Set(aPort("db", phase, "n1", "10.0.0.1"), now)
		m.x.Take()
	}
	tell(0, v1alpha1.PortAttached)
	m.lists("10.0.0.1 n1 ready")
	m.has(both)
	tell(0, v1alpha1.PortMigrating)
	tell(time.Hour, v1alpha1.PortMigrating) // a long migration, and the VM is well
	m.lists("10.0.0.1 n1 unready", "10.0.0.1 n2 unready")
	m.has(both)
	tell(unreadyCheck, v1alpha1.PortMigrating)
	m.has(both)
	tell(UnreadyBound-time.Second, v1alpha1.PortMigrating)
	m.has(both)
	tell(time.Second, v1alpha1.PortMigrating)
	m.has()
	tell(time.Minute, v1alpha1.PortMigrating) // and does not come back by itself
	m.has()
	m.lists("10.0.0.1 n1 ready")
	m.has(both)
	tell(unreadyCheck, v1alpha1.PortMigrating)
	m.lists("10.0.0.1 n1 unready")
	m.has(both)
	tell(unreadyCheck, v1alpha1.PortMigrating)
	m.has(both)
	tell(UnreadyBound, v1alpha1.PortMigrating)
	m.has()
	tell(time.Second, v1alpha1.PortAttached) // given up: no grace
	m.has()
}

// A Service that has a VM only because it is held does not have it for ever, although another has it ready.
func TestHoldOfAStuckMigrationInOneService(t *testing.T) {
	m := startMove(t)
	other := func(s *corev1.Service) {
		s.Name, s.Spec.ClusterIP, s.Spec.ClusterIPs = "other", "10.96.0.11", []string{"10.96.0.11"}
	}
	m.x.Set(aService(other), slices1("10.0.0.1 n1 ready"))
	m.x.Take()
	v, now := NewVMs(m.x), time.Unix(1000, 0)
	tell := func(after time.Duration) {
		now = now.Add(after)
		v.Set(aPort("db", v1alpha1.PortMigrating, "n1", "10.0.0.1"), now)
		m.x.Take()
	}
	tell(0)
	m.lists() // shop/web selects it no more
	m.has(both)
	tell(unreadyCheck)
	tell(UnreadyBound)
	m.has()
	want(t, "the other's endpoints", endpointsOf(t, m.x, Key{"shop", "other"}), []string{both})
	tell(unreadyCheck)
	m.has()
}

func TestServiceMadeAgainHoldsNothing(t *testing.T) {
	m := startMove(t)
	m.vm(VM{Node: "n1", Hold: Moving})
	m.x.Take()
	m.x.Set(aService(func(s *corev1.Service) { s.UID = "another" }), nil)
	m.has()
}

func TestServiceMadeAgain(t *testing.T) {
	x := New()
	x.Set(aService(func(s *corev1.Service) { s.UID = "a" }), slices1("10.0.0.1 n1 ready"))
	x.Take()
	x.Delete(web)
	x.Set(aService(func(s *corev1.Service) { s.UID = "b" }), slices1("10.0.0.1 n1 ready"))
	want(t, "changed", x.Take(), []Key{web})
	x.Set(aService(func(s *corev1.Service) { s.UID = "c" }), slices1("10.0.0.1 n1 ready")) // its end was never heard of
	want(t, "changed", x.Take(), []Key{web})
	want(t, "quiet", len(x.Take()), 0)
	x.Set(aService(func(s *corev1.Service) { s.UID = "c" }), slices1("10.0.0.1 n1 ready"))
	want(t, "the same again", len(x.Take()), 0)
}
