// Package demo shows what Godwit does, on a lab: pods on every node, and who reaches whom.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

const (
	namespace = "demo"
	pods      = 30
	// patience is how long the pods may take to be Ready.
	patience = 3 * time.Minute
)

// ErrUnreachable says that a pod did not reach another; what was printed says which.
var ErrUnreachable = errors.New("not every pod reaches every other")

// Run starts a Deployment of 30 pods on l, lets every pod ask every other on all its addresses, and prints a table. It leaves the pods to the lab.
func Run(ctx context.Context, l *lab.Lab, out io.Writer) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read the lab's kubeconfig: %w", err)
	}
	api, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	if err := deploy(ctx, api); err != nil {
		return err
	}
	start := time.Now()
	fmt.Fprintf(out, "\n%d pods on %d nodes\n", pods, len(l.NodeNames()))
	if err := available(ctx, api); err != nil {
		return err
	}
	fmt.Fprintf(out, "all Ready after %.1f s; every pod now asks every other by HTTP on each of its addresses\n\n", time.Since(start).Seconds())
	ends, err := list(ctx, api)
	if err != nil {
		return err
	}
	start = time.Now()
	m, err := reach.All(ctx, func(ctx context.Context, ns, pod string, cmd ...string) (string, error) { return inPod(ctx, l, ns, pod, cmd) }, ends)
	if err != nil {
		return err
	}
	if err := m.Print(out); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%d of %d pairs reach each other, each under its own address (asked in %.1f s)\n",
		m.Asked()-len(m.Failures), m.Asked(), time.Since(start).Seconds())
	for _, f := range m.Failures {
		fmt.Fprintln(out, f)
	}
	if len(m.Failures) > 0 {
		return ErrUnreachable
	}
	return nil
}

func deploy(ctx context.Context, api kubernetes.Interface) error {
	if _, err := api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the namespace %s: %w", namespace, err)
	}
	replicas, grace := int32(pods), int64(0)
	labels := map[string]string{"app": "demo"}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "demo"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: &grace,
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.DoNotSchedule,
						LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
					}},
					Containers: []corev1.Container{{
						Name: "server", Image: lab.BusyboxImage, Command: []string{"/bin/echoserver"},
						ReadinessProbe: &corev1.Probe{
							ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(80)}},
							PeriodSeconds: 1,
						},
					}},
				},
			},
		},
	}
	if _, err := api.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the Deployment: %w", err)
	}
	return nil
}

// available waits until all pods are Ready.
func available(ctx context.Context, api kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w, err := api.AppsV1().Deployments(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("watch the Deployment: %w", err)
	}
	defer w.Stop()
	var seen int32
	for ev := range w.ResultChan() {
		d, ok := ev.Object.(*appsv1.Deployment)
		if !ok {
			return fmt.Errorf("watch the Deployment: %v", ev.Object)
		}
		if seen = d.Status.AvailableReplicas; seen == pods {
			return nil
		}
	}
	return fmt.Errorf("%d of %d pods are Ready after %s: see `godwit-lab kubectl -n %s describe pods`", seen, pods, patience, namespace)
}

func list(ctx context.Context, api kubernetes.Interface) ([]reach.Pod, error) {
	all, err := api.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the pods: %w", err)
	}
	var ends []reach.Pod
	for _, p := range all.Items {
		e := reach.Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName}
		for _, ip := range p.Status.PodIPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return nil, fmt.Errorf("pod %s: %w", p.Name, err)
			}
			e.IPs = append(e.IPs, a)
		}
		ends = append(ends, e)
	}
	return ends, nil
}

// inPod is kubectl exec. probe's exit status says that a target failed; which one is in its output.
func inPod(ctx context.Context, l *lab.Lab, ns, pod string, argv []string) (string, error) {
	kubectl, err := l.Kubectl()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, kubectl, append([]string{"--kubeconfig", l.Kubeconfig(), "-n", ns, "exec", pod, "--"}, argv...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		return "", fmt.Errorf("kubectl exec %s: %w: %s", pod, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
