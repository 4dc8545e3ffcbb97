package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

// pulse is a heart on a node in memory, with what it has told.
type pulse struct {
	*heart
	node   *fakeNode
	subnet *v1alpha1.Subnet
	// live is what the API server has of the Subnet, if that is something else.
	live  *v1alpha1.Subnet
	clock time.Time
	beats []Beat
	// fail is what the API server answers.
	fail error
	// takes is how long its answer takes, as the heart's clock sees it.
	takes      time.Duration
	translated bool
	announced  []netip.Addr
}

func newPulse(t *testing.T) *pulse {
	t.Helper()
	p := &pulse{node: newFakeNode(), translated: true, subnet: &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "s"}}}
	p.node.addrs = []netdev.HostAddr{{Link: "eth0", Addr: netip.MustParsePrefix("192.0.2.1/24")}, {Link: "ovn0", Addr: netip.MustParsePrefix("100.64.0.2/16")}}
	p.subnet.Spec = v1alpha1.SubnetSpec{
		CIDRs: []string{"10.20.0.0/16"},
		Egress: &v1alpha1.Egress{
			Mode: v1alpha1.EgressGateway, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"egress": "yes"}}, Addresses: []string{"192.0.2.77"},
		},
	}
	p.subnet.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
	in := &inputs{
		nodeName: "one", nodes: cache.NewSharedIndexInformer(&cache.ListWatch{}, &corev1.Node{}, 0, nil), subnets: cache.NewSharedIndexInformer(&cache.ListWatch{}, &v1alpha1.Subnet{}, 0, nil),
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", UID: "uid", Labels: map[string]string{"egress": "yes"}}}
	if err := errors.Join(in.nodes.GetStore().Add(node), in.subnets.GetStore().Add(p.subnet)); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	p.heart = &heart{
		cfg: Config{NodeName: "one", Namespace: "godwit-system"}, log: log, inputs: in, ready: newReadiness(), wake: make(chan struct{}, 1),
		renew: func(_ context.Context, b Beat) error {
			p.heard = p.heard.Add(-p.takes)
			if p.fail == nil {
				b.Addresses = slices.Clone(b.Addresses)
				p.beats = append(p.beats, b)
			}
			return p.fail
		},
		subnet: func(_ context.Context, name string) (*v1alpha1.Subnet, error) {
			if p.fail != nil || name != p.subnet.Name {
				return nil, errors.Join(p.fail, errors.New("there is no Subnet "+name))
			}
			return cmp.Or(p.live, p.subnet), nil
		},
		loans: &loans{
			now: func() time.Time { return p.clock }, log: log, host: p.node, inputs: in, news: map[netdev.Borrowed]int{}, translated: func(netip.Addr) bool { return p.translated },
			announce: func(b netdev.Borrowed) error { p.announced = append(p.announced, b.Addr); return nil },
		},
	}
	return p
}

// last is what the last beat told.
func (p *pulse) last() []string {
	var out []string
	if len(p.beats) > 0 {
		for _, a := range p.beats[len(p.beats)-1].Addresses {
			out = append(out, a.String())
		}
	}
	return out
}

func (p *pulse) has() []string {
	var out []string
	for _, b := range p.node.borrowed {
		out = append(out, b.Link+" "+b.Addr.String())
	}
	return out
}

func (p *pulse) want(t *testing.T, told, has []string) {
	t.Helper()
	if d := gocmp.Diff(told, p.last()); d != "" {
		t.Errorf("told the controller (-want +got)\n%s", d)
	}
	if d := gocmp.Diff(has, p.has()); d != "" {
		t.Errorf("addresses of the node (-want +got)\n%s", d)
	}
}

// The gateway takes its addresses when it is heard of steadily, tells of them when they work, and gives them back when it is not the gateway any more.
func TestHeartTakesAddresses(t *testing.T) {
	p := newPulse(t)
	p.subnet.Status.EgressNode = "two"
	p.beat(t.Context())
	p.want(t, nil, nil)
	p.subnet.Status.EgressNode = "one"
	p.translated = false
	p.beat(t.Context())
	p.want(t, nil, []string{"eth0 192.0.2.77"})
	p.translated = true
	if !p.beat(t.Context()) {
		t.Error("the address works now, and nobody is told until the next second")
	}
	p.beat(t.Context())
	p.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"})
	p.beat(t.Context())
	if len(p.announced) != announceTimes {
		t.Errorf("the address was announced %d times, want %d", len(p.announced), announceTimes)
	}
	p.clock = p.clock.Add(reannounce)
	p.beat(t.Context())
	p.beat(t.Context())
	if len(p.announced) != announceTimes+1 {
		t.Errorf("%s later the address was announced %d times, want %d", reannounce, len(p.announced), announceTimes+1)
	}
	p.subnet.Status.EgressNode = "two"
	p.beat(t.Context())
	p.beat(t.Context())
	p.want(t, nil, nil)
}

// An agent that begins, or reaches the API server again, does not take addresses by what may be old, and keeps those that it has.
func TestHeartBegins(t *testing.T) {
	p := newPulse(t)
	p.subnet.Status.EgressNode = "one"
	p.beat(t.Context())
	p.want(t, nil, nil)
	p.beat(t.Context())
	p.want(t, nil, []string{"eth0 192.0.2.77"})
	p.fail = errors.New("no route to host")
	p.beat(t.Context())
	p.fail = nil
	p.beat(t.Context())
	p.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"}) // it was away for a moment
	p.fail, p.heard = errors.New("no route to host"), p.heard.Add(-time.Minute)
	p.beat(t.Context())
	p.node.borrowed = nil // the kernel has taken it away
	p.fail = nil
	p.beat(t.Context())
	p.want(t, nil, nil)
	p.beat(t.Context())
	p.want(t, nil, []string{"eth0 192.0.2.77"})

	left := []netdev.Borrowed{{Link: "eth0", Addr: netip.MustParseAddr("192.0.2.77")}}
	late := newPulse(t)
	late.subnet.Status.EgressNode, late.node.borrowed = "one", slices.Clone(left)
	late.fail = errors.New("no route to host")
	late.beat(t.Context())
	late.node.borrowed = nil // the kernel has taken it away before anybody was told
	late.fail = nil
	late.beat(t.Context())
	late.want(t, nil, nil)

	successor := newPulse(t)
	successor.subnet.Status.EgressNode, successor.node.borrowed = "one", slices.Clone(left)
	successor.fail = errors.New("no route to host") // the API server is not there yet
	successor.beat(t.Context())
	successor.want(t, nil, []string{"eth0 192.0.2.77"})
	successor.fail = nil
	successor.beat(t.Context())
	successor.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"})
	successor.rest(t.Context())
	if b := successor.beats[len(successor.beats)-1]; b.Patience != v1alpha1.EgressRestart || len(b.Addresses) != 1 {
		t.Errorf("the last beat is %+v", b)
	}
}

// A gateway that comes back learns from its Subnets later that another has their addresses than that its Lease is renewed again.
func TestHeartIsBehind(t *testing.T) {
	p := newPulse(t)
	p.subnet.Status.EgressNode = "one"
	p.live = p.subnet.DeepCopy()
	p.live.Status.EgressNode = "two"
	for range 2 * steady {
		p.beat(t.Context())
	}
	p.want(t, nil, nil)
	p.live = nil
	p.beat(t.Context())
	p.beat(t.Context())
	p.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"})
	p.ready.set(compGateway, "ovn0 is gone")
	p.beat(t.Context())
	p.ready.set(compGateway, "")
	p.beat(t.Context())
	p.want(t, nil, nil) // it has to be heard of steadily again
	p.beat(t.Context())
	p.want(t, nil, []string{"eth0 192.0.2.77"})
	p.live = p.subnet.DeepCopy()
	p.live.Status.EgressNode = "two"
	p.heard = p.heard.Add(-time.Minute) // it stood still, as a machine that is moved
	for range 2 * steady {
		p.beat(t.Context())
		p.want(t, nil, nil)
	}
}

// While Open vSwitch's database starts again the node forwards as before: it keeps what it has for as long as others leave it to it, and says nothing.
func TestHeartMissesABeat(t *testing.T) {
	p := newPulse(t)
	p.subnet.Status.EgressNode = "one"
	for range steady + 1 {
		p.beat(t.Context())
	}
	p.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"})
	said := len(p.beats)
	p.ready.set(compOVS, "the database does not answer")
	p.beat(t.Context())
	if len(p.beats) != said {
		t.Errorf("it said %+v while Open vSwitch's database was away", p.beats[said:])
	}
	p.ready.set(compOVS, "")
	p.beat(t.Context())
	p.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"})
	p.ready.set(compOVS, "the database does not answer")
	p.heard = p.heard.Add(-time.Minute)
	p.node.borrowed = nil // the kernel has taken it away
	p.ready.set(compOVS, "")
	p.beat(t.Context())
	p.want(t, nil, nil)
}

// An address that the node cannot have does not stop the others, and the controller is told of these alone.
func TestHeartBadAddress(t *testing.T) {
	p := newPulse(t)
	p.subnet.Status.EgressNode = "one"
	p.subnet.Spec.Egress.Addresses = []string{"192.0.2.1", "192.0.2.77"} // the first is the node's own
	for range steady + 1 {
		p.beat(t.Context())
	}
	p.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"})
}

// A node that no Subnet selects, or that is not ready, says nothing.
func TestHeartIsSilent(t *testing.T) {
	p := newPulse(t)
	p.ready.set(compGateway, "ovn0 is gone")
	p.beat(t.Context())
	p.ready.set(compGateway, "")
	p.subnet.Spec.Egress.NodeSelector.MatchLabels["egress"] = "no"
	p.beat(t.Context())
	if len(p.beats) > 0 {
		t.Errorf("it said %+v", p.beats)
	}
}

// A beat that took longer than the addresses live by it does not touch them, and nobody is told of them.
func TestHeartStoodStill(t *testing.T) {
	p := newPulse(t)
	p.subnet.Status.EgressNode = "one"
	p.held = p.inputs.assigned("one")
	for _, late := range []time.Duration{0, time.Second} {
		p.keep(p.held, time.Now().Add(-late))
		if len(p.held) > 0 || slices.Contains(p.node.calls, "SyncBorrowed") {
			t.Errorf("%s late the node holds %v, after %v", late, p.held, p.node.calls)
		}
	}
}

// An agent that ends, and was not heard of for so long that another may have its addresses, neither asks for patience nor takes them back.
func TestHeartRestsTooLate(t *testing.T) {
	for _, c := range []struct {
		name string
		// ago is for how long the node was not heard of, takes for how long its last renewal is on its way.
		ago, takes time.Duration
		missing    string
		beats      int
		has        []string
	}{
		{name: "in time", beats: 1, has: []string{"eth0 192.0.2.77"}},
		{name: "in time, while what ends with the agent is missing", missing: "context canceled", beats: 1, has: []string{"eth0 192.0.2.77"}},
		{name: "the database has been away for long", ago: time.Minute, missing: "the database does not answer"},
		{name: "it stood still", ago: time.Minute},
		{name: "the API server answers late", takes: time.Minute, beats: 1},
	} {
		p := newPulse(t)
		p.subnet.Status.EgressNode = "one"
		for range steady + 1 {
			p.beat(t.Context())
		}
		p.want(t, []string{"192.0.2.77"}, []string{"eth0 192.0.2.77"})
		p.ready.set(compOVS, c.missing)
		p.heard, p.takes = p.heard.Add(-c.ago), c.takes
		said := len(p.beats)
		p.node.borrowed = nil // it is seen whether it is asked for again
		p.rest(t.Context())
		if d := gocmp.Diff(c.has, p.has()); d != "" || len(p.beats) != said+c.beats {
			t.Errorf("%s: it said %+v, want %d; addresses of the node (-want +got)\n%s", c.name, p.beats[said:], c.beats, d)
		}
	}
}

// A renewal whose answer comes when the kernel has taken the addresses away does not bring them back unasked.
func TestHeartIsAnsweredLate(t *testing.T) {
	p := newPulse(t)
	p.subnet.Status.EgressNode = "one"
	for range steady + 1 {
		p.beat(t.Context())
	}
	p.live = p.subnet.DeepCopy()
	p.live.Status.EgressNode = "two"
	p.takes = time.Minute
	p.beat(t.Context())
	p.takes = 0
	for range 2 * steady {
		p.beat(t.Context())
		p.want(t, nil, nil)
	}
}
