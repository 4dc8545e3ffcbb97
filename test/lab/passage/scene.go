package passage

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
	vmName   = "vm1"
	peerName = "peer"
	// timeout bounds the traffic of one passage, which takes a dozen seconds.
	timeout = 5 * time.Minute
	poll    = 50 * time.Millisecond
	// settleTimeout is how long the port's options may take to be cleaned up, and the migration's record to be complete.
	settleTimeout = time.Minute
)

// Config of a scene.
type Config struct {
	Lab *lab.Lab
	Log *slog.Logger
	// Name begins the name of the scene's namespace.
	Name string
	// MemoryMiB is the guest's; zero is lab.VMOptions'.
	MemoryMiB int
}

// Scene is what stands when the VM begins to move: the VM on the source, and the pod that it talks to on a third node, so that all traffic crosses tunnels.
type Scene struct {
	Config
	API       client.WithWatch
	NB        *ovn.NB
	VM        *lab.VM
	Namespace string
	// Source and Target are the two nodes between which the VM moves.
	Source, Target string
	// Guest is the VM's end of the traffic.
	Guest End

	vms   *lab.VMs
	third string
	// place is the peer's. The peer's servers run in this process: a program in the pod would have the lowest weight, which shows in what it measures.
	place traffic.Place
	peer  End
}

// New makes the scene's namespace, and nothing in it yet. Remove it in the end.
func New(ctx context.Context, c Config) (*Scene, error) {
	nodes := c.Lab.NodeNames()
	if len(nodes) < 3 {
		return nil, fmt.Errorf("3 nodes are needed, for the VM to move between two and its peer on the third; the lab has %d: run godwit-lab up --nodes 3", len(nodes))
	}
	s := &Scene{Config: c, Source: nodes[0], Target: nodes[1], third: nodes[2]}
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
	if s.API, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	if s.vms, err = c.Lab.VMs(); err != nil {
		return nil, err
	}
	quiet := ovn.Config{Endpoints: []string{c.Lab.NB()}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)}
	if s.NB, err = ovn.Connect(ctx, quiet); err != nil {
		return nil, err
	}
	// A name of its own each time: that of the last one may still be on its way out.
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: s.Name + "-"}}
	if err := s.API.Create(ctx, ns); err != nil {
		s.NB.Close()
		return nil, fmt.Errorf("make a namespace: %w", err)
	}
	s.Namespace = ns.Name
	return s, nil
}

// Remove removes what New and Set have made. It does not wait for the end.
func (s *Scene) Remove(ctx context.Context) error {
	s.NB.Close()
	err := s.API.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}})
	if err != nil {
		return fmt.Errorf("delete namespace %s: %w", s.Namespace, err)
	}
	return nil
}

// Set boots the VM and its peer, and returns when they know each other.
func (s *Scene) Set(ctx context.Context) (err error) {
	start := time.Now()
	s.Log.Info("booting a VM, and a pod for it to talk to", "vm", s.Source, "pod", s.third)
	if s.VM, err = s.vms.Create(ctx, lab.VMOptions{Namespace: s.Namespace, Name: vmName, Node: s.Source, MemoryMiB: s.MemoryMiB}); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.VM.AwaitAnswer(gctx) })
	g.Go(func() error { return s.setPeer(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	vmi, err := s.VM.VMI(ctx)
	if err != nil {
		return err
	}
	if vmi.Status.NodeName != s.Source {
		return fmt.Errorf("VM %s runs on %s, want %s, which it was asked to prefer: see godwit-lab kubectl describe node %s", s.VM, vmi.Status.NodeName, s.Source, s.Source)
	}
	if s.Guest.IPs, err = s.VM.Addresses(ctx); err != nil {
		return err
	}
	s.Guest.Ask = traffic.NewClient(s.place, netip.AddrPortFrom(s.Guest.IPs[0], traffic.ControlPort))
	s.peer.Ask = traffic.NewClient(s.place, netip.AddrPortFrom(s.peer.IPs[0], traffic.ControlPort))
	if err := s.Guest.Ask.Await(ctx); err != nil {
		return err
	}
	s.Log.Info("the VM answers", "addresses", s.Guest.IPs, "took", time.Since(start).Round(100*time.Millisecond))
	return nil
}

func (s *Scene) setPeer(ctx context.Context) error {
	grace := int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: peerName},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{corev1.LabelHostname: s.third},
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "network", Image: lab.BusyboxImage, Command: []string{"sleep", "100000"}}},
		},
	}
	if err := s.API.Create(ctx, pod); err != nil {
		return fmt.Errorf("make pod %s: %w", peerName, err)
	}
	for pod.Status.Phase != corev1.PodRunning || len(pod.Status.PodIPs) == 0 {
		if err := pause(ctx, poll); err != nil {
			return fmt.Errorf("pod %s is %s on %s: %w: see godwit-lab kubectl -n %s describe pods", peerName, pod.Status.Phase, s.third, err, s.Namespace)
		}
		if err := s.API.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return fmt.Errorf("read pod %s: %w", peerName, err)
		}
	}
	for _, ip := range pod.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return fmt.Errorf("read the address of pod %s: %w", peerName, err)
		}
		s.peer.IPs = append(s.peer.IPs, addr)
	}
	var err error
	s.place.Namespace, err = s.Lab.PodNamespace(s.third, s.peer.IPs[0])
	return err
}

// State is what the VM has and its port says.
func (s *Scene) State(ctx context.Context) (State, error) {
	name := ident.VMPort(s.Namespace, vmName, ident.DefaultNetwork)
	vmi, err := s.VM.VMI(ctx)
	if err != nil {
		return State{}, err
	}
	now := State{Node: vmi.Status.NodeName, Port: string(name)}
	if now.Addresses, err = s.VM.Addresses(ctx); err != nil {
		return State{}, err
	}
	row, err := s.NB.Port(ctx, name)
	if err != nil {
		return State{}, fmt.Errorf("read LogicalSwitchPort %s: %w", name, err)
	}
	if row != nil {
		now.UUID, now.Options = row.UUID, row.Options
	}
	return now, nil
}

// Settled is the state after a passage: when it is as it was before, or has not become so for a while.
func (s *Scene) Settled(ctx context.Context, before State) (State, error) {
	deadline := time.Now().Add(settleTimeout)
	for {
		now, err := s.State(ctx)
		if err != nil {
			return now, err
		}
		if len(before.Changes(now)) == 0 || time.Now().After(deadline) {
			return now, nil
		}
		if err := pause(ctx, poll); err != nil {
			return now, errors.Join(errors.New("wait for the VM's port to settle"), err)
		}
	}
}

// Serve serves the peer's side of the traffic while play runs, and returns its error.
func (s *Scene) Serve(ctx context.Context, play func(context.Context) error) error {
	server, err := traffic.Listen(ctx, traffic.ServerConfig{Place: s.place, Log: s.Log})
	if err != nil {
		return fmt.Errorf("serve the VM's traffic in pod %s: %w", peerName, err)
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(serving)
	g.Go(func() error { return server.Serve(gctx) })
	err = play(gctx)
	stop()
	return errors.Join(err, g.Wait())
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
