package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// namespace makes one for the test and deletes it, with all in it, at the end.
func namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())) + "-" + fmt.Sprint(time.Now().UnixNano()%1e6)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if err := cluster.api.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(time.Minute))
		defer cancel()
		if t.Failed() {
			if out, err := kubectl(ctx, "-n", name, "describe", "pods"); err == nil {
				t.Logf("pods of %s:\n%s", name, out)
			}
		}
		now := int64(0)
		err := cluster.api.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(name), &client.DeleteAllOfOptions{DeleteOptions: client.DeleteOptions{GracePeriodSeconds: &now}})
		if err := errors.Join(err, cluster.api.Delete(ctx, ns)); err != nil {
			t.Errorf("clean up namespace %s: %v", name, err)
		}
	})
	return name
}

// server is a pod that runs the lab's echoserver: HTTP on 80, TCP and UDP on 7. It is ready when the kubelet's probe reaches it.
func server(ns, name, node string) *corev1.Pod {
	zero := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{"kubernetes.io/hostname": node},
			TerminationGracePeriodSeconds: &zero,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "server", Image: lab.BusyboxImage, Command: []string{"/bin/echoserver"}, Args: []string{"-name", name},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(80)}},
					PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 10, // a machine that stands still for a second takes no endpoint away
				},
			}},
		},
	}
}

// quietServer is a server whom no probe of the kubelet's asks: its namespace has the connections of the test alone.
func quietServer(ns, name, node string) *corev1.Pod {
	p := server(ns, name, node)
	p.Spec.Containers[0].ReadinessProbe = nil
	return p
}

// onHost is a server on its node's own network, on ports that nothing else uses.
func onHost(ns, name, node string) *corev1.Pod {
	p := server(ns, name, node)
	p.Spec.HostNetwork = true
	p.Spec.Containers[0].Args = []string{"-name", name, "-http", ":8080", "-tcp", "", "-udp", ""}
	p.Spec.Containers[0].ReadinessProbe.HTTPGet.Port = intstr.FromInt32(8080)
	return p
}

func create(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		if err := cluster.api.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

// ready waits until all pods of a namespace are Ready and returns them as ends for reach.
func ready(t *testing.T, ns string, n int) map[string]reach.Pod {
	t.Helper()
	pods := map[string]reach.Pod{}
	until(t, &corev1.PodList{}, ns, func(p *corev1.Pod) bool {
		if isReady(p) {
			pods[p.Name] = end(p)
		}
		return len(pods) == n
	})
	return pods
}

// until watches the pods of a namespace until done says so; for a minute, with patience.
func until(t *testing.T, list client.ObjectList, ns string, done func(*corev1.Pod) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(time.Minute))
	defer cancel()
	w, err := cluster.api.Watch(ctx, list, client.InNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var last *corev1.Pod
	for {
		select {
		case <-ctx.Done():
			t.Fatalf("the pods of %s are not as wanted in time; the last that changed: %s", ns, describe(last))
		case ev, ok := <-w.ResultChan():
			p, isPod := ev.Object.(*corev1.Pod)
			if !ok || !isPod {
				t.Fatalf("watch of %s ended: %v", ns, ev)
			}
			last = p
			if ev.Type != watch.Deleted && done(p) {
				return
			}
		}
	}
}

func describe(p *corev1.Pod) string {
	if p == nil {
		return "none"
	}
	return fmt.Sprintf("%s phase %s conditions %v", p.Name, p.Status.Phase, p.Status.Conditions)
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func end(p *corev1.Pod) reach.Pod {
	e := reach.Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName}
	for _, ip := range p.Status.PodIPs {
		e.IPs = append(e.IPs, netip.MustParseAddr(ip.IP))
	}
	return e
}

// families is how many addresses each pod and node has.
func families() int {
	if cluster.IPFamily() == lab.DualStack {
		return 2
	}
	return 1
}

// probe asks targets from within a pod until all answer, and returns the answers. A pod that is ready answers on its own node at once; others may have to hear of it yet.
func probe(t *testing.T, from reach.Pod, targets ...string) []string {
	t.Helper()
	return allAnswer(t, from.Name, func(ctx context.Context) (string, error) {
		return inPod(ctx, from.Namespace, from.Name, append([]string{"/bin/probe", "-timeout", "5s"}, targets...)...)
	})
}

// machineProbe is probe from a node's own network, or from outside.
func machineProbe(t *testing.T, machine string, targets ...string) []string {
	t.Helper()
	return allAnswer(t, machine, func(ctx context.Context) (string, error) {
		out, err := cluster.Exec(ctx, machine, append([]string{"/proc/1/exe", "probe", "--timeout", "5s"}, targets...)...)
		if out != "" {
			err = nil // the lines say it
		}
		return out, err
	})
}

// allAnswer runs a probe until all that it asks answer, and reads what it printed: "ok TARGET TOOK ANSWER".
func allAnswer(t *testing.T, from string, run func(context.Context) (string, error)) (all []string) {
	t.Helper()
	eventually(t, settleTimeout, func(ctx context.Context) error {
		out, err := run(ctx)
		if err != nil {
			return err
		}
		all = nil
		for line := range strings.Lines(out) {
			f := strings.SplitN(strings.TrimSpace(line), " ", 4)
			if f[0] != "ok" || len(f) < 4 {
				return fmt.Errorf("from %s: %s", from, strings.TrimSpace(line))
			}
			all = append(all, f[3])
		}
		return nil
	})
	return all
}

// reachEachOther has every pod ask every other until all answer.
func reachEachOther(t *testing.T, pods ...reach.Pod) (m *reach.Matrix) {
	t.Helper()
	eventually(t, settleTimeout, func(ctx context.Context) (err error) {
		m, err = reach.All(ctx, inPod, pods)
		if err == nil && len(m.Failures) > 0 {
			err = fmt.Errorf("%v", m.Failures)
		}
		return err
	})
	return m
}

func target(scheme string, ip netip.Addr, port uint16) string {
	return scheme + "://" + netip.AddrPortFrom(ip, port).String()
}

func forbidden(err error) bool { return apierrors.IsForbidden(err) }
