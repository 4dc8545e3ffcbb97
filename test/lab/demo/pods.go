package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// Pods runs pods in a namespace of their own, lets each reach all others on all addresses, writes a table of the result and removes the namespace. It fails
// when a pair does not reach each other.
func Pods(ctx context.Context, c Config, pods int) (err error) {
	client, err := c.Lab.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	// A name of its own each time: that of the last one may still be on its way out.
	request := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: demoName + "-"}}
	ns, err := client.CoreV1().Namespaces().Create(ctx, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make the demo's namespace: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}))
	}()
	if _, err := client.AppsV1().Deployments(ns.Name).Create(ctx, podsDeployment(pods), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make the demo's pods: %w", err)
	}
	ends, err := awaitPods(ctx, client, ns.Name, pods)
	if err != nil {
		return err
	}
	c.Log.Info("the pods are ready", "pods", pods, "took", time.Since(start).Round(100*time.Millisecond))
	start = time.Now()
	m, err := reach.All(ctx, func(ctx context.Context, namespace, pod string, argv ...string) (string, error) {
		return execInPod(ctx, c.Lab, namespace, pod, argv...)
	}, ends)
	if err != nil {
		return fmt.Errorf("let the pods reach each other: %w", err)
	}
	c.Log.Info("every pod has asked every pod", "requests", m.Asked(), "took", time.Since(start).Round(100*time.Millisecond))
	if err := m.Print(c.Out); err != nil {
		return err
	}
	for _, f := range m.Failures {
		_, _ = fmt.Fprintln(c.Out, f) // the error below says it too, if only in numbers
	}
	if n := len(m.Failures); n > 0 {
		return fmt.Errorf("%d of %d requests failed", n, m.Asked())
	}
	return nil
}

func podsDeployment(pods int) *appsv1.Deployment {
	replicas, grace := int32(pods), int64(1)
	labels := map[string]string{"app": demoName}
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(80)}}, PeriodSeconds: 1}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: demoName},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: &grace,
				Containers:                    []corev1.Container{{Name: "echo", Image: lab.BusyboxImage, Command: []string{"echoserver"}, ReadinessProbe: probe}},
				TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
					MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
				}},
			}},
		},
	}
}

// awaitPods returns the demo's pods when all are ready.
func awaitPods(ctx context.Context, client kubernetes.Interface, namespace string, want int) ([]reach.Pod, error) {
	for {
		list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list the demo's pods: %w", err)
		}
		var ends []reach.Pod
		for i := range list.Items {
			p := &list.Items[i]
			ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
			if !ready || p.DeletionTimestamp != nil {
				continue
			}
			end := reach.Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName}
			for _, ip := range p.Status.PodIPs {
				addr, err := netip.ParseAddr(ip.IP)
				if err != nil {
					return nil, fmt.Errorf("read the address of pod %s: %w", p.Name, err)
				}
				end.IPs = append(end.IPs, addr)
			}
			ends = append(ends, end)
		}
		if len(ends) == want && len(list.Items) == want {
			return ends, nil
		}
		if err := pause(ctx, 4*poll); err != nil {
			return nil, fmt.Errorf("%d of %d pods are ready: %w: see godwit-lab kubectl -n %s describe pods", len(ends), want, err, namespace)
		}
	}
}

// execInPod runs a command in a pod, by kubectl. probe says in its output which targets failed, and its status only that some did.
func execInPod(ctx context.Context, l *lab.Lab, namespace, pod string, argv ...string) (string, error) {
	kubectl, err := l.Kubectl()
	if err != nil {
		return "", err
	}
	args := append([]string{"--kubeconfig=" + l.Kubeconfig(), "--namespace=" + namespace, "exec", pod, "--"}, argv...)
	cmd := exec.CommandContext(ctx, kubectl, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || len(out) == 0) {
		return "", fmt.Errorf("run %s in pod %s: %w: %s", argv[0], pod, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
