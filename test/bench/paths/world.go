package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab"
)

const (
	namespace             = "bench-paths"
	clientNode, otherNode = "node1", "node2"
	labelServer           = "server"
)

// path is where the server is, for a client on clientNode.
type path string

const (
	otherNodes path = "node to node"
	sameNode   path = "on one node"
)

// server is a pod, and the ClusterIP of a Service of which it is the only endpoint.
type server struct {
	path         path
	pod, service netip.Addr
}

// world is what is measured in.
type world struct {
	*bench
	// client is the network namespace of the client's pod.
	client  string
	servers []server
	stop    context.CancelFunc
}

// make creates the pods and Services and has the servers serve, in this process: a program in the pod would wait for a processor with the lowest weight.
func (w *world) make(ctx context.Context) error {
	if err := w.namespace(ctx); err != nil {
		return err
	}
	for name, node := range map[string]string{"client": clientNode, slug(sameNode): clientNode, slug(otherNodes): otherNode} {
		if _, err := w.api.CoreV1().Pods(namespace).Create(ctx, pod(name, node), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create pod %s: %w", name, err)
		}
	}
	_, netns, err := w.running(ctx, "client", clientNode)
	if err != nil {
		return err
	}
	w.client = netns
	serving, stop := context.WithCancel(ctx)
	w.stop = stop
	for _, p := range []struct {
		path path
		node string
	}{{otherNodes, otherNode}, {sameNode, clientNode}} {
		name := slug(p.path)
		ip, netns, err := w.running(ctx, name, p.node)
		if err != nil {
			return err
		}
		if err := listen(serving, netns, usualPorts()); err != nil {
			return fmt.Errorf("pod %s: %w", name, err)
		}
		svc, err := w.api.CoreV1().Services(namespace).Create(ctx, serviceOf(name), metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create Service %s: %w", name, err)
		}
		vip, err := netip.ParseAddr(svc.Spec.ClusterIP)
		if err != nil {
			return fmt.Errorf("Service %s: its ClusterIP: %w", name, err)
		}
		w.servers = append(w.servers, server{path: p.path, pod: ip, service: vip})
	}
	return nil
}

// slug is a path as the name of its server.
func slug(p path) string { return strings.ReplaceAll(string(p), " ", "-") }

func (w *world) remove(ctx context.Context) error {
	if w.stop != nil {
		w.stop()
	}
	zero := int64(0)
	err := w.api.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{})
	return errors.Join(err, w.api.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}))
}

// namespace creates the namespace, after that of an earlier run is gone.
func (w *world) namespace(ctx context.Context) error {
	err := await(ctx, "namespace "+namespace+" is created", func() error {
		_, err := w.api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return await(ctx, "namespace "+namespace+" has its service account", func() error { // pods are refused before
		_, err := w.api.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// running waits until a pod runs, and returns its address and network namespace.
func (w *world) running(ctx context.Context, name, node string) (ip netip.Addr, netns string, err error) {
	err = await(ctx, "pod "+name+" runs", func() error {
		p, err := w.api.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("it is %s", p.Status.Phase)
		}
		ip, err = netip.ParseAddr(p.Status.PodIP)
		return err
	})
	if err != nil {
		return ip, "", err
	}
	netns, err = w.lab.PodNamespace(node, ip)
	return ip, netns, err
}

// balanced waits until every node has the Services' load balancers, and pods and ClusterIPs answer.
func (w *world) balanced(ctx context.Context) error {
	return w.settled(ctx, "the Services have load balancers", func(rows string) error {
		for _, s := range w.servers {
			if !strings.Contains(rows, string(balancer(s.path))) {
				return fmt.Errorf("there is none %s", balancer(s.path))
			}
		}
		return nil
	}, func(s server) []netip.Addr { return []netip.Addr{s.pod, s.service} })
}

// bare waits until no node has a load balancer any more, and pods answer.
func (w *world) bare(ctx context.Context) error {
	return w.settled(ctx, "no switch has load balancers", func(rows string) error {
		if rows != "" {
			return fmt.Errorf("there are %s", strings.Fields(rows))
		}
		return nil
	}, func(s server) []netip.Addr { return []netip.Addr{s.pod} })
}

// balancer is the load balancer of a path's Service.
func balancer(p path) ident.LoadBalancerName { return ident.LoadBalancer(namespace, slug(p), "tcp") }

// settled waits until the load balancers' names are as they should be, every node has what that comes to, and what should answers.
func (w *world) settled(ctx context.Context, what string, check func(names string) error, answers func(server) []netip.Addr) error {
	nbctl := []string{"ovn-nbctl", "--db=" + w.lab.NB()}
	err := await(ctx, what, func() error {
		rows, err := w.lab.Exec(ctx, "hub", append(nbctl, "--bare", "--columns=name", "list", "Load_Balancer")...)
		if err != nil {
			return err
		}
		return check(strings.TrimSpace(rows))
	})
	if err != nil {
		return err
	}
	if _, err := w.lab.Exec(ctx, "hub", append(nbctl, "--timeout=60", "--wait=hv", "sync")...); err != nil {
		return fmt.Errorf("wait for the nodes: %w", err)
	}
	for _, s := range w.servers {
		for _, addr := range answers(s) {
			c := client{server: addr}
			err := await(ctx, fmt.Sprintf("%s answers", addr), func() error {
				return in(w.client, func() error { return c.once(ctx, firstPort) })
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// await tries until it works.
func await(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("waited until %s: %w", what, errors.Join(err, context.Cause(ctx)))
		}
	}
}

func pod(name, node string) *corev1.Pod {
	zero := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelServer: name}},
		Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &zero, AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{Name: "c", Image: lab.BusyboxImage, Command: []string{"/bin/sleep", "100000"}}},
		},
	}
}

// serviceOf is the Service of the one pod of that name.
func serviceOf(name string) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Selector: map[string]string{labelServer: name}}}
	for _, p := range usualPorts() {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", p), Port: int32(p)})
	}
	return svc
}
