package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab/reach"
	"github.com/godwit-cni/godwit/test/service/oracle"
)

// goods are a pod of a Service, and customers on its node and elsewhere; the outside asks NodePorts.
type goods struct {
	ns        string
	pod       reach.Pod
	near, far reach.Pod
	customers []customer
}

func newGoods(t *testing.T) *goods {
	t.Helper()
	g := &goods{ns: namespace(t, nil)}
	create(t, serviceBackend(g.ns, "a", "node1", podRole), server(g.ns, "near", "node1"), server(g.ns, "far", "node3"))
	pods := ready(t, g.ns, 3)
	g.pod, g.near, g.far = pods["a"], pods["near"], pods["far"]
	g.customers = []customer{podCustomer(g.near), podCustomer(g.far), machineCustomer("node1"), machineCustomer("node3"), machineCustomer("outside")}
	return g
}

// sells waits until the Service is as the oracle says it of these backends.
func (g *goods) sells(t *testing.T, svc *corev1.Service, backends ...oracle.Backend) {
	t.Helper()
	inquiry{svc: svc, backends: backends, counters: counters(svc, nil)}.settle(t, g.customers)
}

// gate makes a pod ready when, and as long as, it has a file.
func gate(p *corev1.Pod) *corev1.Pod {
	p.Spec.Containers[0].ReadinessProbe.ProbeHandler = corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/tmp/ready"}}}
	p.Spec.Containers[0].ReadinessProbe.FailureThreshold = 1
	return p
}

func setGate(t *testing.T, ns, pod, command string) {
	t.Helper()
	if _, err := inPod(t.Context(), ns, pod, command, "/tmp/ready"); err != nil {
		t.Fatal(err)
	}
}

// Without endpoints a Service refuses, whoever asks; it is served when one is ready, and refuses again when it is not.
func TestServiceReadiness(t *testing.T) {
	g := newGoods(t)
	svc := echoService(g.ns, "gated", "gated", 7)
	svc.Spec.Type = corev1.ServiceTypeNodePort
	early := echoService(g.ns, "early", "gated", 7)
	early.Spec.Type, early.Spec.PublishNotReadyAddresses = corev1.ServiceTypeNodePort, true
	open(t, svc, nil)
	open(t, early, nil)
	g.sells(t, svc)
	create(t, gate(serviceBackend(g.ns, "gated", "node2", "gated")))
	var pod reach.Pod
	until(t, &corev1.PodList{}, g.ns, func(p *corev1.Pod) bool {
		pod = end(p)
		return p.Name == "gated" && p.Status.Phase == corev1.PodRunning && len(pod.IPs) == families()
	})
	b := backend(pod)
	b.State = oracle.NotReady
	t.Run("not ready", func(t *testing.T) { g.sells(t, svc, b) })
	t.Run("published all the same", func(t *testing.T) { g.sells(t, early, b) })
	setGate(t, g.ns, "gated", "touch")
	b.State = oracle.Ready
	t.Run("ready", func(t *testing.T) { g.sells(t, svc, b) })
	setGate(t, g.ns, "gated", "rm")
	b.State = oracle.NotReady
	t.Run("not ready any more", func(t *testing.T) { g.sells(t, svc, b) })
	consistent(t)
}

// A pod that ends and still answers its readiness probe serves where there is no other, and no more as soon as there is one.
func TestServiceEndingPod(t *testing.T) {
	g := newGoods(t)
	svc := echoService(g.ns, "ending", "ending", 7)
	svc.Spec.Type = corev1.ServiceTypeNodePort
	open(t, svc, nil)
	leaving := serviceBackend(g.ns, "leaving", "node2", "ending")
	grace := int64(600) // or until the test has ended
	leaving.Spec.TerminationGracePeriodSeconds = &grace
	c := &leaving.Spec.Containers[0]
	c.Args, c.Command = nil, []string{"sh", "-c", "trap '' TERM; echoserver -name leaving & wait"} // whoever asks it to end is not heard
	create(t, leaving)
	t.Cleanup(func() { // with the namespace it would go for the API at once, and for its node after its grace
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(time.Minute))
		defer cancel()
		const kill = `for p in /proc/[0-9]*; do case "$(tr '\0' ' ' <$p/cmdline)" in *echoserver\ -name\ leavin[g]*) kill -9 ${p#/proc/};; esac; done`
		if _, err := cluster.Exec(ctx, "node2", "sh", "-c", kill); err != nil {
			t.Errorf("end pod %s: %v", leaving.Name, err)
		}
		err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (gone bool, err error) {
			err = cluster.api.Delete(ctx, leaving, client.GracePeriodSeconds(1))
			return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
		})
		if err != nil {
			t.Errorf("delete pod %s: %v", leaving.Name, err)
		}
	})
	pods := ready(t, g.ns, 4)
	b := backend(pods["leaving"])
	g.sells(t, svc, b)
	if err := cluster.api.Delete(t.Context(), leaving); err != nil {
		t.Fatal(err)
	}
	b.State = oracle.Ending
	t.Run("alone", func(t *testing.T) { g.sells(t, svc, b) })
	create(t, serviceBackend(g.ns, "staying", "node1", "ending"))
	other := backend(ready(t, g.ns, 5)["staying"])
	t.Run("beside another", func(t *testing.T) { g.sells(t, svc, b, other) })
}

// A Service that is deleted and made again at once, with the same name and at the same address, is the new one.
func TestServiceMadeAgain(t *testing.T) {
	g := newGoods(t)
	create(t, serviceBackend(g.ns, "b", "node2", "other"))
	b := backend(ready(t, g.ns, 4)["b"])
	old := echoService(g.ns, "again", podRole, 7)
	old.Spec.Type = corev1.ServiceTypeNodePort
	open(t, old, nil)
	g.sells(t, old, backend(g.pod))
	again := echoService(g.ns, "again", "other", 7)
	again.Spec.Type, again.Spec.ClusterIP, again.Spec.ClusterIPs = corev1.ServiceTypeNodePort, old.Spec.ClusterIP, old.Spec.ClusterIPs
	for i := range again.Spec.Ports {
		again.Spec.Ports[i].NodePort = old.Spec.Ports[i].NodePort
	}
	start := time.Now()
	if err := cluster.api.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := cluster.api.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	t.Logf("deleted and made again within %s", time.Since(start).Round(time.Millisecond))
	g.sells(t, again, b)
	if err := cluster.api.Delete(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	eventually(t, settleTimeout, func(ctx context.Context) error {
		rows, err := nbctl(ctx, "--bare", "--columns=name", "list", "Load_Balancer")
		if err != nil {
			return err
		}
		if containsName(rows, g.ns+"/again") {
			return fmt.Errorf("the Service is gone, and OVN has load balancers of it:\n%s", rows)
		}
		return nil
	})
}

// Named ports go to each pod's own port of the name; a Service of one port does not answer at others.
func TestServiceNamedPort(t *testing.T) {
	g := newGoods(t)
	for name, port := range map[string]int32{"seven": 7, "other": 8081} {
		p := serviceBackend(g.ns, name, "node2", "named")
		p.Spec.Containers[0].Args = append(p.Spec.Containers[0].Args, "-tcp", fmt.Sprintf(":%d", port), "-udp", fmt.Sprintf(":%d", port))
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "echo", ContainerPort: port}, {Name: "echo-udp", ContainerPort: port, Protocol: corev1.ProtocolUDP}}
		create(t, p)
	}
	pods := ready(t, g.ns, 5)
	svc := echoService(g.ns, "named", "named", 0)
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc.Spec.Ports[0].TargetPort, svc.Spec.Ports[1].TargetPort = intstr.FromString("echo"), intstr.FromString("echo-udp")
	open(t, svc, nil)
	g.sells(t, svc, backend(pods["seven"]), backend(pods["other"]))
}

// A headless Service has no address, and nothing is made for it.
func TestServiceHeadless(t *testing.T) {
	g := newGoods(t)
	svc := echoService(g.ns, "headless", podRole, 7)
	svc.Spec.ClusterIP = corev1.ClusterIPNone
	open(t, svc, nil)
	beside := echoService(g.ns, "beside", podRole, 7)
	open(t, beside, nil)
	g.sells(t, beside, backend(g.pod)) // by then the other has been seen too
	rows, err := nbctl(t.Context(), "--bare", "--columns=name", "list", "Load_Balancer")
	if err != nil {
		t.Fatal(err)
	}
	if !containsName(rows, g.ns+"/beside") || containsName(rows, g.ns+"/headless") {
		t.Errorf("OVN has load balancers\n%s\nwant those of %s/beside and none of %[2]s/headless", rows, g.ns)
	}
}

// With externalTrafficPolicy Local each node says over HTTP whether it has endpoints of its own.
func TestServiceHealthCheck(t *testing.T) {
	g := newGoods(t)
	svc := echoService(g.ns, "local", podRole, 7)
	svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	open(t, svc, nil)
	if svc.Spec.HealthCheckNodePort == 0 {
		t.Fatal("the API server gave the Service no healthCheckNodePort")
	}
	local := "node1" // where the endpoint is
	check := func(ctx context.Context) error {
		for _, node := range cluster.NodeNames() {
			for _, ip := range cluster.NodeIPs(node) {
				got, err := healthStatus(ctx, ip, svc.Spec.HealthCheckNodePort)
				if err != nil {
					return err
				}
				want := http.StatusServiceUnavailable
				if node == local {
					want = http.StatusOK
				}
				if got != want {
					return fmt.Errorf("%s answers %d at %s, want %d", node, got, ip, want)
				}
			}
		}
		return nil
	}
	eventually(t, settleTimeout, check)
	now := int64(0)
	if err := cluster.api.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: g.ns, Name: "a"}}, &client.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	local = ""
	eventually(t, settleTimeout, check)
	if err := cluster.api.Delete(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	eventually(t, settleTimeout, func(ctx context.Context) error {
		if got, err := healthStatus(ctx, cluster.NodeIPs("node1")[0], svc.Spec.HealthCheckNodePort); err == nil {
			return fmt.Errorf("the Service is gone, and node1 still answers %d", got)
		}
		return nil
	})
}

// The API server answers at the address of its Service, to pods and to what runs on nodes.
func TestServiceKubernetes(t *testing.T) {
	ns := namespace(t, nil)
	create(t, server(ns, "near", "node1"), server(ns, "far", "node3"))
	pods := ready(t, ns, 2)
	var svc corev1.Service
	if err := cluster.api.Get(t.Context(), client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}, &svc); err != nil {
		t.Fatal(err)
	}
	for _, text := range svc.Spec.ClusterIPs {
		at := netip.AddrPortFrom(netip.MustParseAddr(text), 443)
		eventually(t, settleTimeout, func(ctx context.Context) error {
			for _, p := range pods {
				if err := speaksTLS(ctx, podPlace(t, p), at); err != nil {
					return fmt.Errorf("from pod %s: %w", p.Name, err)
				}
			}
			for _, node := range cluster.NodeNames() {
				if err := speaksTLS(ctx, machinePlace(t, node), at); err != nil {
					return fmt.Errorf("from %s: %w", node, err)
				}
			}
			return nil
		})
	}
}
