package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// chaos is what all TestChaos tests share. The first of them that needs it makes it, TestMain removes it.
var chaos pool

// chaosNamespace has the VMs and the pods of chaos.
const chaosNamespace = "chaos"

// pool is a few VMs, and a pod on each node to watch them from.
type pool struct {
	history *history
	peers   map[string]reach.Pod
	vms     map[int]*machine
	booted  int
}

// open makes the pool, without VMs.
func (p *pool) open(t *testing.T) {
	t.Helper()
	if p.peers != nil {
		return
	}
	// The test's own context ends with it; the history goes on.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(time.Minute))
	defer cancel()
	var err error
	if p.history, err = watchHistory(ctx, cluster.NB(), cluster.SB()); err != nil {
		t.Fatal(err)
	}
	p.vms = map[int]*machine{}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: chaosNamespace}}
	eventually(t, time.Minute, func(ctx context.Context) error { return client.IgnoreAlreadyExists(cluster.api.Create(ctx, ns)) })
	for _, node := range cluster.NodeNames() {
		create(t, server(chaosNamespace, "peer-"+node, node))
	}
	p.peers = map[string]reach.Pod{}
	for _, peer := range ready(t, chaosNamespace, len(cluster.NodeNames())) {
		p.peers[peer.Node] = peer
	}
}

// vm is the VM of a number. One that a test left in a bad state was discarded, and another is booted.
func (p *pool) vm(t *testing.T, number int) *machine {
	t.Helper()
	p.open(t)
	if vm := p.vms[number]; vm != nil {
		return vm
	}
	p.booted++
	nodes := cluster.NodeNames()
	vm, err := boot(t.Context(), lab.VMOptions{Namespace: chaosNamespace, Name: fmt.Sprintf("vm-%d-%d", number, p.booted), Node: nodes[number%len(nodes)]})
	if vm != nil {
		p.vms[number] = vm
	}
	if err != nil {
		p.discard(t, number)
		t.Fatal(err)
	}
	return vm
}

// discard deletes a VM.
func (p *pool) discard(t *testing.T, number int) {
	t.Helper()
	vm := p.vms[number]
	if vm == nil {
		return
	}
	delete(p.vms, number)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(time.Minute))
	defer cancel()
	if err := vm.Delete(ctx); err != nil {
		t.Errorf("delete VM %s: %v", vm, err)
	}
}

// close removes all of it.
func (p *pool) close(ctx context.Context) error {
	if p.peers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience(2*time.Minute))
	defer cancel()
	p.history.close()
	var errs []error
	for _, vm := range p.vms {
		errs = append(errs, vm.Delete(ctx))
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: chaosNamespace}}
	errs = append(errs, cluster.api.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(chaosNamespace), client.GracePeriodSeconds(0)), cluster.api.Delete(ctx, ns))
	return errors.Join(errs...)
}

// portName is the name of the VM's row.
func (m *machine) portName() ident.PortName {
	return ident.VMPort(m.Namespace, m.Name, ident.DefaultNetwork)
}

// promptly is how soon after KubeVirt's own recovery the network has recovered too, on an idle machine.
const promptly = 2 * time.Second

// slowest is how much slower than the machine that the limits were written on another may be, whatever its load says of it.
const slowest = 5

// strictly is set in the environment to have the limits taken as they are, on an idle machine.
const strictly = "STRICT"

// patience is how long to wait on any machine for what takes d at most on an idle one.
func patience(d time.Duration) time.Duration {
	if os.Getenv(strictly) != "" {
		return busy(d)
	}
	return max(slowest*d, busy(d))
}

// busy is d for as much longer as this machine has more to do than it can.
func busy(d time.Duration) time.Duration {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return d
	}
	load, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	if err != nil {
		return d
	}
	return time.Duration(float64(d) * max(1, load/float64(runtime.NumCPU())))
}
