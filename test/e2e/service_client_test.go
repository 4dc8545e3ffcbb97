package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// Services for the VM as a client are of one backend, and of several.
const serviceOfOne, serviceOfSeveral = "one", "several"

// trafficServer is a pod in whose place this process serves the VM's traffic.
func trafficServer(ns, name, node string) *corev1.Pod {
	p := server(ns, name, node)
	p.Labels[serviceOfSeveral] = "yes"
	p.Spec.Containers[0].Args = append(p.Spec.Containers[0].Args, "-tcp", "", "-udp", "")
	return p
}

// trafficService has the ports of traffic.
func trafficService(ns, name string, selector map[string]string) *corev1.Service {
	svc := policyService(ns, name, selector)
	svc.Spec.Ports = nil
	for name, port := range map[string]int32{"echo": permittedEcho, "sink": permittedSink, "source": permittedSource} {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromInt32(port)})
	}
	return svc
}

// course is the traffic of a VM by one way.
type course struct {
	name  string
	peers []netip.Addr
	run   traffic.RunID
}

func (c *course) spec() traffic.Spec {
	spec := passage.Holding(traffic.MaxLength)
	spec.Peers, spec.Silence.Duration = c.peers, silence
	spec.Echo.Connections, spec.Upload.Connections, spec.Download.Connections = 2, 2, 2
	spec.Echo.Interval.Duration = time.Second
	spec.Upload.Rate, spec.Download.Rate = 10_000, 10_000
	return spec
}

func (c *course) begin(t *testing.T, guest passage.End) {
	t.Helper()
	var err error
	if c.run, err = guest.Ask.Start(t.Context(), c.spec()); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(settleTimeout))
	defer cancel()
	if err := guest.Ask.AwaitOpen(ctx, c.run); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
}

// idle asks for how long there has been no progress on that of its connections which has waited longest.
func (c *course) idle(guest passage.End) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		status, err := guest.Ask.Status(ctx, c.run)
		return status.Idle.Duration, err
	}
}

// end returns how many connections of each kind there were, and how many of them broke.
func (c *course) end(t *testing.T, guest passage.End) (broken int, text string) {
	t.Helper()
	result, err := guest.Ask.Stop(t.Context(), c.run)
	if err != nil {
		t.Fatal(err)
	}
	open, of := map[string]int{}, map[string]int{}
	for _, conn := range result.Connections {
		kind := fmt.Sprint(conn.Kind)
		of[kind]++
		stuck := conn.Stall.Open && conn.Stall.Length() > 10*time.Second
		if conn.Broken != "" || conn.Bytes == 0 || stuck {
			broken++
			t.Logf("%s: %s", c.name, carried{Connection: conn, who: guests})
			continue
		}
		open[kind]++
	}
	var said []string
	for kind := range of {
		said = append(said, fmt.Sprintf("%d of %d %s", open[kind], of[kind], kind))
	}
	return broken, strings.Join(said, ", ")
}

// finds has the guest connect to Services, once by their names, as its lease has told it where the cluster's DNS is, and once at each of their addresses.
func finds(ctx context.Context, t *testing.T, s *passage.Scene, services ...*corev1.Service) error {
	t.Helper()
	var order echo.Order
	for _, svc := range services {
		for _, host := range append([]string{svc.Name + "." + svc.Namespace + ".svc.cluster.local"}, svc.Spec.ClusterIPs...) {
			order.Questions = append(order.Questions, echo.Question{Target: "tcp://" + net.JoinHostPort(host, strconv.Itoa(permittedEcho)), Within: patience(askTimeout)})
		}
	}
	desk := echo.NewDesk(machinePlace(t, "node3").Dial, netip.AddrPortFrom(s.Guest.IPs[0], echo.DeskPort))
	tallies, err := askedOnce(ctx, desk, order)
	if err != nil {
		return err
	}
	for _, tally := range tallies {
		t.Logf("the guest asks %s", tally)
		if tally.Answered == 0 {
			err = errors.Join(err, fmt.Errorf("the guest is not answered: %s", tally))
		}
	}
	return err
}

// A VM that is a client of pods, directly and through ClusterIPs, moves: what goes directly lives; through a ClusterIP the translation stays behind, and what becomes of connections
// that were open is told and not judged (docs/migration.md). It opens new ones anywhere, and finds Services by their names.
func TestServiceVMClient(t *testing.T) {
	s := newScene(t, "service-client", 0)
	ns := namespace(t, nil)
	for _, node := range []string{s.Source, s.Target, "node3"} {
		create(t, trafficServer(ns, "on-"+node, node))
	}
	setScene(t, s)
	pods := ready(t, ns, 3)
	serving, stop := context.WithCancel(t.Context())
	var servers errgroup.Group
	defer func() {
		stop()
		if err := servers.Wait(); err != nil {
			t.Error(err)
		}
	}()
	for _, p := range pods {
		server, err := traffic.Listen(serving, traffic.ServerConfig{Place: podPlace(t, p), Log: s.Log})
		if err != nil {
			t.Fatal(err)
		}
		servers.Go(func() error { return server.Serve(serving) })
	}
	one := trafficService(ns, serviceOfOne, map[string]string{"app": "on-node3"})
	several := trafficService(ns, serviceOfSeveral, map[string]string{serviceOfSeveral: "yes"})
	open(t, one, nil)
	open(t, several, nil)
	if err := cluster.StartDNS(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The DNS and both Services begin in this moment: until OVN has their backends on the VM's node they are refused, and a name that is not known is remembered so.
	eventually(t, settleTimeout, func(ctx context.Context) error { return finds(ctx, t, s, one, several) })
	courses := []*course{
		{name: "a pod", peers: pods["on-node3"].IPs},
		{name: "a ClusterIP of one pod", peers: parsed(one.Spec.ClusterIPs)},
		{name: "a ClusterIP of three pods", peers: parsed(several.Spec.ClusterIPs)},
	}
	for i := range wanted(t, serviceMigrations, 1, 1) {
		for _, c := range courses {
			c.begin(t, s.Guest)
		}
		time.Sleep(2 * time.Second)
		to, _ := shuttle(t, s, i)
		watchOn(t, watched(), courses[0].idle(s.Guest))
		for _, c := range courses {
			broken, text := c.end(t, s.Guest)
			t.Logf("moved to %s, with %s: %s live", to, c.name, text)
			if broken > 0 && c == courses[0] {
				t.Errorf("%d connections with a pod broke", broken)
			}
		}
	}
	if err := finds(t.Context(), t, s, one, several); err != nil {
		t.Error(err)
	}
	for _, c := range courses {
		c.begin(t, s.Guest)  // or the test ends here
		time.Sleep(underWay) // one that has had no byte by then is waited for
		goOn(t, watched(), c.idle(s.Guest))
		if broken, text := c.end(t, s.Guest); broken > 0 {
			t.Errorf("opened afterwards, with %s: %s live", c.name, text)
		}
	}
}
