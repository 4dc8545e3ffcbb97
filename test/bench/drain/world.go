package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// booting is how many VMs boot at a time: an emulated one takes a processor for five seconds.
	booting = 4
	poll    = 50 * time.Millisecond
	// bootTimeout is for one VM beside others, on a busy machine.
	bootTimeout = 2 * time.Minute
	// interval is between two probes to a VM that moves, and so what an interruption is measured to; echoes are between two requests on a connection.
	interval, echoes = 20 * time.Millisecond, 500 * time.Millisecond
	// silence is how long a connection may be without an answer. Twenty emulated guests on two processors wait for one for many seconds, which breaks no TCP connection: how long it was is told.
	silence = time.Minute
	// connections are held to each VM, over all of its addresses.
	connections = 2
)

// bench is what stands when the node is drained.
type bench struct {
	lab     *lab.Lab
	log     *slog.Logger
	api     client.Client
	nb      *ovn.NB
	kubectl string
	// drained is the node that all VMs are on at first, third that of the pod that talks to them.
	drained, third string
	namespace      string
	place          traffic.Place
	guests         []*guest
	probes         *probes
	singles        []move
	// took is how long kubectl drain ran, spread how many VMs each node has then.
	took   time.Duration
	spread map[string]int
	// differences are what the lab's check found after it.
	differences []string
}

// guest is one VM, what it had before, and its traffic.
type guest struct {
	*lab.VM
	ips []netip.Addr
	// node is where it began.
	node string
	// row and addresses are its LogicalSwitchPort's UUID, and MAC and IP addresses.
	row, addresses string
	held           *traffic.Run
	// broken says of each of its connections that broke, or was never opened, why. stalls are the longest times without an answer, of each, in milliseconds.
	broken []string
	stalls []float64
	// evacuation is its last migration.
	evacuation move
	// lost says what it has not kept, empty for nothing.
	lost string
}

func newBench(l *lab.Lab, log *slog.Logger) (*bench, error) {
	nodes := l.NodeNames()
	if len(nodes) < 3 {
		return nil, fmt.Errorf("3 nodes are needed, the lab has %d: run godwit-lab up --nodes 3", len(nodes))
	}
	b := &bench{lab: l, log: log, drained: nodes[0], third: nodes[2], spread: map[string]int{}}
	config, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	scheme, err := kubevirt.Scheme()
	if err != nil {
		return nil, err
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("know Godwit's kinds: %w", err)
	}
	b.api, err = client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	return b, nil
}

// set makes the namespace, the pod and the VMs, and starts the traffic.
func (b *bench) set(ctx context.Context, want size) error {
	set, err := binaries.Ensure(ctx, b.log)
	if err != nil {
		return err
	}
	b.kubectl = set.Path("kubectl")
	quiet := ovn.Config{Endpoints: []string{b.lab.NB()}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)}
	if b.nb, err = ovn.Connect(ctx, quiet); err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-drain-"}}
	if err := b.api.Create(ctx, ns); err != nil {
		return fmt.Errorf("make a namespace: %w", err)
	}
	b.namespace = ns.Name
	if err := b.setPeer(ctx); err != nil {
		return err
	}
	b.log.Info("booting VMs", "count", want.vms, "of them on the node that is drained", want.drained)
	b.guests = make([]*guest, want.vms)
	// A preference for the node is not enough where it is by far the fullest.
	if _, err := b.control(ctx, append([]string{"cordon"}, b.others()...)...); err != nil {
		return err
	}
	if err := b.boot(ctx, b.guests[:want.drained], 0, b.drained); err != nil {
		return err
	}
	if _, err := b.control(ctx, append([]string{"uncordon"}, b.others()...)...); err != nil {
		return err
	}
	if err := b.boot(ctx, b.guests[want.drained:], want.drained, b.others()[0]); err != nil {
		return err
	}
	return b.talk(ctx)
}

// others are the nodes that are not drained.
func (b *bench) others() []string { return b.lab.NodeNames()[1:] }

// remove removes all of it, and uncordons the nodes. It does not wait for the end.
func (b *bench) remove(ctx context.Context) error {
	var errs []error
	if b.kubectl != "" {
		_, err := b.control(ctx, append([]string{"uncordon", b.drained}, b.others()...)...)
		errs = append(errs, err)
	}
	if b.namespace != "" {
		errs = append(errs, b.api.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b.namespace}}))
	}
	if b.nb != nil {
		b.nb.Close()
	}
	return errors.Join(errs...)
}

func (b *bench) setPeer(ctx context.Context) error {
	grace := int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: "peer"},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{corev1.LabelHostname: b.third}, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "network", Image: lab.BusyboxImage, Command: []string{"sleep", "100000"}}},
		},
	}
	if err := b.api.Create(ctx, pod); err != nil {
		return fmt.Errorf("make the pod that talks to the VMs: %w", err)
	}
	for pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" {
		if err := pause(ctx, poll); err != nil {
			return fmt.Errorf("pod %s/%s is %s on %s: %w", pod.Namespace, pod.Name, pod.Status.Phase, b.third, err)
		}
		if err := b.api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return fmt.Errorf("read pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	ip, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil {
		return fmt.Errorf("read the address of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	b.place.Namespace, err = b.lab.PodNamespace(b.third, ip)
	return err
}

// boot boots VMs on a node, and names them from a number on.
func (b *bench) boot(ctx context.Context, guests []*guest, from int, node string) error {
	vms, err := b.lab.VMs()
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(booting)
	for i := range guests {
		g.Go(func() error {
			vm, err := vms.Create(gctx, lab.VMOptions{
				Namespace: b.namespace, Name: fmt.Sprintf("vm%d", from+i+1), Node: node, Eviction: kubevirtv1.EvictionStrategyLiveMigrate,
			})
			if err != nil {
				return err
			}
			guests[i] = &guest{VM: vm, node: node}
			bootCtx, cancel := context.WithTimeout(gctx, bootTimeout)
			defer cancel()
			if err := vm.AwaitAnswer(bootCtx); err != nil {
				return err
			}
			return b.know(gctx, guests[i])
		})
	}
	return g.Wait()
}

// know notes what the VM has.
func (b *bench) know(ctx context.Context, g *guest) (err error) {
	vmi, err := g.VMI(ctx)
	if err != nil {
		return err
	}
	if vmi.Status.NodeName != g.node {
		return fmt.Errorf("VM %s runs on %s, want %s, which it was asked to prefer", g, vmi.Status.NodeName, g.node)
	}
	if g.ips, err = g.Addresses(ctx); err != nil {
		return err
	}
	g.row, g.addresses, _, err = b.port(ctx, g)
	return err
}

// port is what the VM's row says: its UUID, MAC and IP addresses, options.
func (b *bench) port(ctx context.Context, g *guest) (uuid, addresses string, options map[string]string, err error) {
	name := ident.VMPort(g.Namespace, g.Name, ident.DefaultNetwork)
	row, err := b.nb.Port(ctx, name)
	if err == nil && row == nil {
		err = errors.New("there is none")
	}
	if err != nil {
		return "", "", nil, fmt.Errorf("read LogicalSwitchPort %s: %w", name, err)
	}
	return row.UUID, strings.Join(row.Addresses, "; "), row.Options, nil
}

// talk holds connections to all VMs, over all of their addresses.
func (b *bench) talk(ctx context.Context) error {
	for _, g := range b.guests {
		var err error
		g.held, err = traffic.Begin(ctx, b.place, traffic.Spec{
			Peers: g.ips, Echo: traffic.Echoing{Connections: connections, Interval: traffic.Duration{Duration: echoes}}, Silence: traffic.Duration{Duration: silence},
		})
		if err != nil {
			return err
		}
	}
	for _, g := range b.guests {
		for g.held.Status().Open < connections {
			if err := pause(ctx, poll); err != nil {
				return fmt.Errorf("connections to VM %s are not open: %+v: %w", g, g.held.Status(), err)
			}
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
