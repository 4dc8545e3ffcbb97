package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// On each way come fewConnections, or as many as the variable serviceConnections says, of which two are an upload and a download; the VM moves fewMigrations times, or
	// as often as serviceMigrations says.
	fewConnections, serviceConnections = 6, "CONNECTIONS"
	fewMigrations, serviceMigrations   = 2, "MIGRATIONS"
	// manyMemory is what a guest has that holds more than fewConnections of each way, in MiB.
	manyMemory = 256
	// usualRate is that of a bulk stream, in bytes a second, closeRate that of one that is looked at closely: at every interval there is something to see.
	usualRate, closeRate = 10_000, 100_000
	// vmServiceNumber keeps its addresses apart from those of the table's Services.
	vmServiceNumber = 60
)

// way is one way to the VM, and the traffic on it.
type way struct {
	name  string
	place traffic.Place
	peers []netip.Addr
	ports traffic.Ports
	// rate is that of its bulk streams in bytes a second, usualRate if zero.
	rate int64
	// shared says that others have connections in the place: what is reset there is not known to be of the way.
	shared bool

	run    *traffic.Run
	resets int
	opened opened
}

// opened are connections that were opened one after another, while the VM moved and while it did not.
type opened struct {
	mu     sync.Mutex
	n      int
	failed []string
}

// vmService is a Service whose one endpoint is the VM, with every kind of address.
func vmService(t *testing.T, s *passage.Scene) (*corev1.Service, map[netip.Addr]string) {
	t.Helper()
	policy := corev1.IPFamilyPolicyPreferDualStack
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "vm"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilyPolicy: &policy, Selector: map[string]string{kubevirtv1.DeprecatedVirtualMachineNameLabel: s.VM.Name},
		},
	}
	for name, port := range map[string]int32{"echo": 7, "sink": 9, "source": 19} {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromInt32(port)})
	}
	loadBalancer, via := addresses(t, svc, vmServiceNumber)
	open(t, svc, loadBalancer)
	return svc, via
}

// vmLocalService is one whose scope is Local for clients outside, at node ports.
func vmLocalService(t *testing.T, s *passage.Scene) *corev1.Service {
	t.Helper()
	policy := corev1.IPFamilyPolicyPreferDualStack
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "vm-local"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, IPFamilyPolicy: &policy,
			Selector: map[string]string{kubevirtv1.DeprecatedVirtualMachineNameLabel: s.VM.Name}, Ports: []corev1.ServicePort{{Name: "echo", Port: 7, TargetPort: intstr.FromInt32(7)}},
		},
	}
	open(t, svc, nil)
	return svc
}

// reachedAt connects from outside to a Service of scope Local at its VM's anchor and at the node where the VM is.
func reachedAt(t *testing.T, svc *corev1.Service, nodes ...string) {
	t.Helper()
	w := way{place: machinePlace(t, "outside")}
	for _, node := range nodes {
		for _, ip := range cluster.NodeIPs(node) {
			at := netip.AddrPortFrom(ip, uint16(svc.Spec.Ports[0].NodePort))
			eventually(t, settleTimeout, func(ctx context.Context) error {
				if err := w.dial(ctx, at, patience(5*time.Second)); err != nil {
					return fmt.Errorf("outside, externalTrafficPolicy Local at %s of %s: %w", at, node, err)
				}
				return nil
			})
		}
	}
}

// ways are all ways to the VM: from a pod of the source and from one of a third node, from a host, and from outside.
func ways(t *testing.T, s *passage.Scene, svc *corev1.Service) []*way {
	t.Helper()
	ns := namespace(t, nil)
	create(t, quietServer(ns, "near", s.Source), quietServer(ns, "third", "node3"))
	pods := ready(t, ns, 2)
	near, third, outside := podPlace(t, pods["near"]), podPlace(t, pods["third"]), machinePlace(t, "outside")
	var nodePorts traffic.Ports
	for _, p := range svc.Spec.Ports {
		*map[string]*uint16{"echo": &nodePorts.Echo, "sink": &nodePorts.Sink, "source": &nodePorts.Source}[p.Name] = uint16(p.NodePort)
	}
	var loadBalancer []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		loadBalancer = append(loadBalancer, in.IP)
	}
	out := []*way{
		{name: "pod on a third node, directly", place: third, peers: s.Guest.IPs},
		{name: "pod on a third node, ClusterIP", place: third, peers: parsed(svc.Spec.ClusterIPs), rate: closeRate},
		{name: "pod on the source, ClusterIP", place: near, peers: parsed(svc.Spec.ClusterIPs)},
		{name: "pod on a third node, load balancer", place: third, peers: parsed(loadBalancer)},
		{name: "host of a third node, ClusterIP", place: machinePlace(t, "node3"), peers: parsed(svc.Spec.ClusterIPs), shared: true},
		{name: "outside, load balancer", place: outside, peers: parsed(loadBalancer)},
	}
	for role, node := range map[string]string{"source": s.Source, "target": s.Target, "a third node": "node3"} {
		out = append(out, &way{name: "outside, NodePort of " + role, place: outside, peers: cluster.NodeIPs(node), ports: nodePorts},
			&way{name: "pod on a third node, NodePort of " + role, place: third, peers: cluster.NodeIPs(node), ports: nodePorts})
	}
	return out
}

func parsed(list []string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// begin opens the way's connections, and waits until they are open.
func (w *way) begin(t *testing.T) {
	t.Helper()
	spec := passage.Holding(traffic.MaxLength)
	spec.Peers, spec.Ports, spec.Silence.Duration = w.peers, w.ports, silence
	n := wanted(t, serviceConnections, fewConnections, 3)
	spec.Echo.Connections, spec.Upload.Connections, spec.Download.Connections = n-2, 1, 1
	spec.Echo.Interval.Duration = time.Second // an emulated processor serves them all
	rate := cmp.Or(w.rate, usualRate)
	spec.Upload.Rate, spec.Download.Rate = rate, rate
	run, err := traffic.Begin(t.Context(), w.place, spec)
	if err != nil {
		t.Fatal(err)
	}
	w.run = run
	eventually(t, settleTimeout, func(context.Context) error {
		if st := run.Status(); st.Open < st.Wanted {
			return fmt.Errorf("%s: %d of %d connections are open, %d are broken", w.name, st.Open, st.Wanted, st.Broken)
		}
		return nil
	})
}

// keepOpening opens connections and has something echoed, one after another, until ctx ends.
func (w *way) keepOpening(ctx context.Context, within time.Duration) {
	ports := w.ports
	ports.Defaults()
	for i := 0; ctx.Err() == nil; i++ {
		at := netip.AddrPortFrom(w.peers[i%len(w.peers)], ports.Echo)
		start := time.Now()
		err := w.dial(ctx, at, within)
		if ctx.Err() != nil {
			return
		}
		w.opened.mu.Lock()
		w.opened.n++
		if err != nil {
			w.opened.failed = append(w.opened.failed, fmt.Sprintf("at %s, after %s: %v", start.Format(time.TimeOnly), time.Since(start).Round(time.Millisecond), err))
		}
		w.opened.mu.Unlock()
		time.Sleep(500 * time.Millisecond)
	}
}

func (w *way) dial(ctx context.Context, at netip.AddrPort, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := w.place.Dial(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return echoed(conn, within)
}

// resetsIn is how many established connections have been reset in a network namespace, by the kernel's count.
func resetsIn(t *testing.T, place traffic.Place) (n int) {
	t.Helper()
	err := netns.Do(place.Namespace, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var tcp [][]string
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 0 && f[0] == "Tcp:" {
				tcp = append(tcp, f)
			}
		}
		for i, name := range tcp[0] {
			if name == "EstabResets" {
				n, err = strconv.Atoi(tcp[1][i])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// judge ends the way's traffic, and fails the test for what was broken. stops are those of the VM meanwhile.
func (w *way) judge(t *testing.T, stops []lab.Stop) {
	t.Helper()
	resets := resetsIn(t, w.place) // before the run ends its own
	result, err := w.run.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open, broken := result.Open()
	var worst time.Duration
	for _, c := range result.Connections {
		worst = max(worst, c.Stall.Length())
		if c.Broken != "" || c.Bytes == 0 {
			t.Errorf("%s: %s", w.name, carried{Connection: c, who: "the client's"})
		}
		if w.rate == closeRate && (c.Kind == traffic.Upload || c.Kind == traffic.Download) {
			moving, resting := intervals{result.Start, result.Bucket, c.Buckets}.empty(stops)
			t.Logf("%s: %s, intervals of %s without a byte: as the VM moved %s; else %s", w.name, c.Kind, result.Bucket, moving, resting)
		}
	}
	if resets > w.resets && !w.shared {
		t.Errorf("%s: %d established connections were reset in the client's namespace", w.name, resets-w.resets)
	}
	w.opened.mu.Lock()
	defer w.opened.mu.Unlock()
	t.Logf("%s: %d connections, %d broken, longest stall %s; %d were opened meanwhile, %d could not be", w.name, open, broken, worst.Round(time.Millisecond), w.opened.n,
		len(w.opened.failed))
	for _, f := range w.opened.failed {
		t.Errorf("%s: a new connection: %s", w.name, f)
	}
}

// wanted is what a variable says, usual if nothing.
func wanted(t *testing.T, variable string, usual, least int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least {
		t.Fatalf("%s=%s: want a number, at least %d", variable, text, least)
	}
	return n
}

// A VM behind a Service moves, again and again, and is reached all the time: no connection breaks, on whatever way it came, none is reset, and new ones are opened. With scope Local it
// is reached from outside at its anchor and where it is.
func TestServiceVMMigration(t *testing.T) {
	memory := 0
	if wanted(t, serviceConnections, fewConnections, 3) > fewConnections {
		memory = manyMemory
	}
	s := newScene(t, "service-vm", memory)
	setScene(t, s)
	svc, _ := vmService(t, s)
	local := vmLocalService(t, s)
	all := ways(t, s, svc)
	for _, w := range all {
		w.begin(t)
		w.resets = resetsIn(t, w.place)
	}
	opening, stop := context.WithCancel(t.Context())
	defer stop()
	var openers sync.WaitGroup
	for _, w := range all {
		openers.Go(func() { w.keepOpening(opening, patience(5*time.Second)) })
	}
	var stops []lab.Stop
	for i := range wanted(t, serviceMigrations, fewMigrations, 1) {
		to, stop := shuttle(t, s, i)
		stops = append(stops, stop)
		reachedAt(t, local, s.Source, to)
	}
	watchOn(t, watched(), func(context.Context) (longest time.Duration, err error) {
		for _, w := range all {
			longest = max(longest, w.run.Status().Idle.Duration)
		}
		return longest, nil
	})
	stop()
	openers.Wait()
	for _, w := range all {
		w.judge(t, stops)
	}
	consistent(t)
}
