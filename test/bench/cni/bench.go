package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/bench/node"
	"github.com/godwit-cni/godwit/test/bench/scrape"
	"github.com/godwit-cni/godwit/test/bench/table"
	"github.com/godwit-cni/godwit/test/lab"
)

const (
	namespace = "bench"
	theNode   = "node1"
	// single is how many are attached one after another, burst how many at once.
	single, burst = 40, 30
)

type bench struct {
	lab   *lab.Lab
	api   kubernetes.Interface
	notes []string
}

func newBench(l *lab.Lab) (*bench, error) {
	api, err := l.Client()
	if err != nil {
		return nil, err
	}
	return &bench{lab: l, api: api}, nil
}

// attach measures a job on the node and adds a row of it.
func (b *bench) attach(ctx context.Context, r *table.Report, name string, job node.Job) error {
	in, err := json.Marshal(job)
	if err != nil {
		return err
	}
	var out, stderr bytes.Buffer
	if err := b.lab.Run(ctx, theNode, lab.Stdio{In: bytes.NewReader(in), Out: &out, Err: &stderr}, "/proc/1/exe", "bench-attach"); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, stderr.String())
	}
	var res node.Result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out.String())
	}
	row := table.Quantiles(name, res.Each)
	if job.AtOnce > 1 {
		row.Values["all"] = res.All
	}
	r.Rows = append(r.Rows, row)
	return nil
}

// bridge is the floor of CNI: a veth on a Linux bridge, addresses from a file.
func (b *bench) bridge(ctx context.Context, r *table.Report) error {
	conf := `{"cniVersion":"1.0.0","name":"bench","type":"bridge","bridge":"bench0","ipam":{"type":"host-local","dataDir":"/run/bench-ipam","ranges":[[{"subnet":"192.0.2.0/24"}]]}}`
	job := node.Job{Plugin: "/opt/cni/bin/bridge", Conf: conf, Count: single, AtOnce: 1}
	if err := b.attach(ctx, r, "ADD of the bridge plugin, one at a time", job); err != nil {
		return err
	}
	job.Count, job.AtOnce = burst, burst
	if err := b.attach(ctx, r, fmt.Sprintf("ADD of the bridge plugin, %d at once", burst), job); err != nil {
		return err
	}
	_, err := b.lab.Exec(ctx, theNode, "sh", "-c", "ip link del bench0; rm -rf /run/bench-ipam")
	return err
}

// alone is OVN's own floor: a northbound row and an interface, until ovn-installed.
func (b *bench) alone(ctx context.Context, r *table.Report) error {
	s, err := b.lab.Exec(ctx, theNode, "ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids:ovn-remote")
	if err != nil {
		return err
	}
	remote := bytes.Replace(bytes.Trim([]byte(s), "\"\n"), []byte(":6642"), []byte(":6641"), 1)
	first := netip.MustParseAddr("10.244.250.1")
	if b.lab.IPFamily() == lab.IPv6 {
		first = netip.MustParseAddr("fd00:10:244::f:1")
	}
	job := node.Job{NB: string(remote), Node: theNode, Switch: ident.SubnetSwitch("default"), Addresses: first, Count: single, AtOnce: 1}
	if err := b.attach(ctx, r, "OVN alone: row and interface to ovn-installed, one at a time", job); err != nil {
		return err
	}
	job.Count, job.AtOnce = burst, burst
	return b.attach(ctx, r, fmt.Sprintf("OVN alone, %d at once", burst), job)
}

// adds are Godwit's own ADDs, run by hand for pods that the kubelet leaves alone: they wait for a Secret that does not exist.
func (b *bench) adds(ctx context.Context, r *table.Report) error {
	for _, c := range []struct {
		name      string
		n, atOnce int
	}{{"ADD of Godwit, one at a time", single, 1}, {fmt.Sprintf("ADD of Godwit, %d at once", burst), burst, burst}} {
		args, err := b.held(ctx, c.n)
		if err != nil {
			return err
		}
		conf := `{"cniVersion":"1.0.0","name":"godwit","type":"godwit"}`
		if err := b.attach(ctx, r, c.name, node.Job{Plugin: "/opt/cni/bin/godwit", Conf: conf, Args: args, AtOnce: c.atOnce}); err != nil {
			return err
		}
		if err := b.clear(ctx); err != nil {
			return err
		}
	}
	return nil
}

// held creates pods on the node whose containers are never started, and returns the CNI_ARGS of each once the controller has served them.
func (b *bench) held(ctx context.Context, n int) ([]string, error) {
	if err := b.namespace(ctx); err != nil {
		return nil, err
	}
	w, err := b.api.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	for i := range n {
		p := pod(fmt.Sprint("held", i), theNode)
		p.Spec.Volumes = []corev1.Volume{{Name: "never", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "never"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "never", MountPath: "/never"}}
		if _, err := b.api.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	served := map[string]string{}
	for ev := range w.ResultChan() {
		if p, ok := ev.Object.(*corev1.Pod); ok && p.Annotations[v1alpha1.IdentityAnnotation] != "" {
			served[p.Name] = fmt.Sprintf("K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s", namespace, p.Name, p.UID)
		}
		if len(served) == n {
			break
		}
	}
	var args []string
	for _, a := range served {
		args = append(args, a)
	}
	if len(args) != n {
		return nil, fmt.Errorf("%d of %d pods were served", len(args), n)
	}
	return args, nil
}

// pods are real ones, from their creation to Running.
func (b *bench) pods(ctx context.Context, r *table.Report) error {
	before, err := scrape.Transactions(ctx, b.api)
	if err != nil {
		return err
	}
	var each []float64
	for i := range single {
		took, err := b.running(ctx, []*corev1.Pod{pod(fmt.Sprint("one", i), theNode)})
		if err != nil {
			return err
		}
		each = append(each, took...)
	}
	r.Rows = append(r.Rows, table.Quantiles("pod from creation to Running, one at a time", each))
	middle, err := scrape.Transactions(ctx, b.api)
	if err != nil {
		return err
	}
	if err := b.clear(ctx); err != nil {
		return err
	}
	cleared, err := scrape.Transactions(ctx, b.api)
	if err != nil {
		return err
	}
	nodes := b.lab.NodeNames()
	var many []*corev1.Pod
	for i := range burst {
		many = append(many, pod(fmt.Sprint("many", i), nodes[i%len(nodes)]))
	}
	start := time.Now()
	took, err := b.running(ctx, many)
	if err != nil {
		return err
	}
	row := table.Quantiles(fmt.Sprintf("pod from creation to Running, %d at once on %d nodes", burst, len(nodes)), took)
	row.Values["all"] = float64(time.Since(start).Milliseconds())
	r.Rows = append(r.Rows, row)
	after, err := scrape.Transactions(ctx, b.api)
	if err != nil {
		return err
	}
	b.notes = append(b.notes, fmt.Sprintf("northbound transactions a pod: %.2f one at a time, %.2f in the burst",
		(middle-before)/single, (after-cleared)/burst))
	return b.clear(ctx)
}

// running creates pods and returns how long each took to run, in milliseconds.
func (b *bench) running(ctx context.Context, pods []*corev1.Pod) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := b.namespace(ctx); err != nil {
		return nil, err
	}
	w, err := b.api.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	created, took := map[string]time.Time{}, map[string]float64{}
	for _, p := range pods {
		created[p.Name] = time.Now()
		if _, err := b.api.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	for ev := range w.ResultChan() {
		p, ok := ev.Object.(*corev1.Pod)
		if _, ours := created[p.Name]; !ok || !ours || p.Status.Phase != corev1.PodRunning || took[p.Name] != 0 {
			continue
		}
		if took[p.Name] = float64(time.Since(created[p.Name]).Microseconds()) / 1000; len(took) == len(pods) {
			break
		}
	}
	var all []float64
	for _, t := range took {
		all = append(all, t)
	}
	if len(all) != len(pods) {
		return nil, fmt.Errorf("%d of %d pods run", len(all), len(pods))
	}
	return all, nil
}

func (b *bench) namespace(ctx context.Context) error {
	_, err := b.api.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if _, err := b.api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	for range 100 { // pods are refused until the namespace has its service account
		if _, err = b.api.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{}); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// clear deletes the pods and returns when they are gone.
func (b *bench) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pods := b.api.CoreV1().Pods(namespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	w, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer w.Stop()
	zero := int64(0)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{}); err != nil {
		return err
	}
	left := len(list.Items)
	for left > 0 {
		ev, ok := <-w.ResultChan()
		if !ok {
			return fmt.Errorf("%d pods are left: %w", left, context.Cause(ctx))
		}
		if ev.Type == watch.Deleted {
			left--
		}
	}
	return nil
}

func pod(name, on string) *corev1.Pod {
	zero := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: on, TerminationGracePeriodSeconds: &zero, AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{Name: "c", Image: lab.BusyboxImage, Command: []string{"/bin/sleep", "1000"}}},
		},
	}
}
