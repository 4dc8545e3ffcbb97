package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	demoName = "godwit-demo"
	vmName   = "vm1"
	peerName = "peer"
	// settleTimeout is how long the port's options may take to be cleaned up, and the migration's record to be complete.
	settleTimeout = 5 * time.Second
)

// scene is what stands when the VM begins to move: the VM on the source, and the pod that it talks to on a third node, so that all traffic crosses tunnels.
type scene struct {
	Config
	api       client.WithWatch
	nb        *ovn.NB
	vms       *lab.VMs
	vm        *lab.VM
	namespace string

	source, target, third string
	// place is the peer's. The peer's servers run in this process: a program in the pod would have the lowest weight, which shows in what it measures.
	place       traffic.Place
	guest, peer end
}

func newScene(ctx context.Context, c Config) (*scene, error) {
	nodes := c.Lab.NodeNames()
	if len(nodes) < 3 {
		return nil, fmt.Errorf("the demo needs 3 nodes, for the VM to move between two and its peer on the third; the lab has %d: run godwit-lab up --nodes 3", len(nodes))
	}
	s := &scene{Config: c, source: nodes[0], target: nodes[1], third: nodes[2]}
	config, err := c.Lab.RESTConfig()
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
	if s.api, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	if s.vms, err = c.Lab.VMs(); err != nil {
		return nil, err
	}
	quiet := ovn.Config{Endpoints: []string{c.Lab.NB()}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)}
	if s.nb, err = ovn.Connect(ctx, quiet); err != nil {
		return nil, err
	}
	// A name of its own each time: that of the last demo may still be on its way out.
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: demoName + "-"}}
	if err := s.api.Create(ctx, ns); err != nil {
		s.nb.Close()
		return nil, fmt.Errorf("make the demo's namespace: %w", err)
	}
	s.namespace = ns.Name
	return s, nil
}

// remove removes what newScene and set have made. It does not wait for the end.
func (s *scene) remove(ctx context.Context) error {
	s.nb.Close()
	err := s.api.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}})
	if err != nil {
		return fmt.Errorf("delete the demo's namespace %s: %w", s.namespace, err)
	}
	return nil
}

// set boots the VM and its peer, and returns when they know each other.
func (s *scene) set(ctx context.Context) (err error) {
	start := time.Now()
	s.Log.Info("booting a VM, and a pod for it to talk to", "vm", s.source, "pod", s.third)
	if s.vm, err = s.vms.Create(ctx, lab.VMOptions{Namespace: s.namespace, Name: vmName, Node: s.source}); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.vm.AwaitAnswer(gctx) })
	g.Go(func() error { return s.setPeer(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	vmi, err := s.vm.VMI(ctx)
	if err != nil {
		return err
	}
	if vmi.Status.NodeName != s.source {
		return fmt.Errorf("VM %s runs on %s, want %s, which it was asked to prefer: see godwit-lab kubectl describe node %s", s.vm, vmi.Status.NodeName, s.source, s.source)
	}
	if s.guest.ips, err = s.vm.Addresses(ctx); err != nil {
		return err
	}
	s.guest.ask = traffic.NewClient(s.place, netip.AddrPortFrom(s.guest.ips[0], traffic.ControlPort))
	s.peer.ask = traffic.NewClient(s.place, netip.AddrPortFrom(s.peer.ips[0], traffic.ControlPort))
	if err := s.guest.ask.Await(ctx); err != nil {
		return err
	}
	s.Log.Info("the VM answers", "addresses", s.guest.ips, "took", time.Since(start).Round(100*time.Millisecond))
	return nil
}

func (s *scene) setPeer(ctx context.Context) error {
	grace := int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: peerName},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{corev1.LabelHostname: s.third},
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "network", Image: lab.BusyboxImage, Command: []string{"sleep", "100000"}}},
		},
	}
	if err := s.api.Create(ctx, pod); err != nil {
		return fmt.Errorf("make pod %s: %w", peerName, err)
	}
	for pod.Status.Phase != corev1.PodRunning || len(pod.Status.PodIPs) == 0 {
		if err := pause(ctx, poll); err != nil {
			return fmt.Errorf("pod %s is %s on %s: %w: see godwit-lab kubectl -n %s describe pods", peerName, pod.Status.Phase, s.third, err, s.namespace)
		}
		if err := s.api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return fmt.Errorf("read pod %s: %w", peerName, err)
		}
	}
	for _, ip := range pod.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return fmt.Errorf("read the address of pod %s: %w", peerName, err)
		}
		s.peer.ips = append(s.peer.ips, addr)
	}
	var err error
	s.place.Namespace, err = s.Lab.PodNamespace(s.third, s.peer.ips[0])
	return err
}

// state is what the VM has and its port says.
func (s *scene) state(ctx context.Context) (state, error) {
	name := ident.VMPort(s.namespace, vmName, ident.DefaultNetwork)
	vmi, err := s.vm.VMI(ctx)
	if err != nil {
		return state{}, err
	}
	now := state{node: vmi.Status.NodeName, port: string(name)}
	if now.addresses, err = s.vm.Addresses(ctx); err != nil {
		return state{}, err
	}
	row, err := s.nb.Port(ctx, name)
	if err != nil {
		return state{}, fmt.Errorf("read LogicalSwitchPort %s: %w", name, err)
	}
	if row != nil {
		now.uuid, now.options = row.UUID, row.Options
	}
	return now, nil
}

// settled is the state after the demo: when it is as it was before, or has not become so for a while.
func (s *scene) settled(ctx context.Context, before state) (state, error) {
	deadline := time.Now().Add(settleTimeout)
	for {
		now, err := s.state(ctx)
		if err != nil {
			return now, err
		}
		if len(before.changes(now)) == 0 || time.Now().After(deadline) {
			return now, nil
		}
		if err := pause(ctx, poll); err != nil {
			return now, errors.Join(errors.New("wait for the VM's port to settle"), err)
		}
	}
}
