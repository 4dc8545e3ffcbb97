package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/test/kernel/control"
	"github.com/godwit-cni/godwit/test/kernel/vm"
	"github.com/godwit-cni/godwit/test/lab/pki"
	"github.com/godwit-cni/godwit/test/lab/source"
)

const (
	namespace = "godwit-system"
	// podCIDRs and joinCIDRs are the cluster's, both families.
	podCIDRs    = "10.244.0.0/16,fd00:10:244::/64"
	joinCIDRs   = "100.64.0.0/16,fd98::/64"
	metricsPort = 9476
	healthPort  = 9478
)

// startGodwit starts the controller, with flags besides its usual ones, and an agent on every node, as their manifests do, and returns when all are ready.
func (c *Cluster) startGodwit(ctx context.Context, flags []string) error {
	for _, n := range c.Nodes {
		if err := n.register(ctx); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.StartController(ctx, flags...) })
	for _, n := range c.Nodes {
		g.Go(func() error { return n.startAgent(ctx) })
	}
	return g.Wait()
}

// register creates the Node object, as a kubelet does.
func (n *Node) register(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	if err := n.cluster.API.Create(ctx, node); err != nil {
		return fmt.Errorf("create Node %s: %w", n.Name, err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name}, {Type: corev1.NodeInternalIP, Address: n.address.String()}}
	if err := n.cluster.API.Status().Update(ctx, node); err != nil {
		return fmt.Errorf("set the addresses of Node %s: %w", n.Name, err)
	}
	return nil
}

// credentials is a kubeconfig.
func (c *Cluster) credentials(account, node string) ([]byte, error) {
	return c.api.kubeconfig(types.NamespacedName{Namespace: namespace, Name: account}, node)
}

// StartController starts it with flags besides its usual ones, which are not those of Config, and returns when it is ready. The one before has ended: EndController.
func (c *Cluster) StartController(ctx context.Context, flags ...string) error {
	config, err := c.credentials("godwit-controller", "")
	if err != nil {
		return err
	}
	file := c.file("controller.kubeconfig")
	if err := pki.WriteSecret(file, config); err != nil {
		return err
	}
	const program = "./cmd/godwit-controller"
	built, release, err := source.Programs(ctx, c.log, program)
	if err != nil {
		return err
	}
	defer release()
	args := append([]string{"--ovn-issuer", "--kubeconfig=" + file, "--nb-remote=unix:" + c.file(nbSocket), fmt.Sprintf("--sb-remote=tcp:%s:%d", vm.Outside, sbPort), "--default-cidrs=" + podCIDRs,
		"--join-cidrs=" + joinCIDRs, "--namespace=" + namespace}, flags...)
	if c.controller, err = c.beside(exec.CommandContext(ctx, filepath.Join(built, filepath.Base(program)), args...)); err != nil {
		return err
	}
	return awaitProcesses(ctx, "start the controller", []*process{c.controller}, c.ready(netip.AddrPortFrom(vm.Outside, healthPort)))
}

// EndController ends the controller, which gives its Lease up, and returns when it has ended.
func (c *Cluster) EndController(ctx context.Context) error { return c.controller.end(ctx) }

// RestartController is EndController and StartController. It must not be called twice at the same time.
func (c *Cluster) RestartController(ctx context.Context, flags ...string) error {
	if err := c.EndController(ctx); err != nil {
		return err
	}
	return c.StartController(ctx, flags...)
}

// startAgent starts it with flags besides its usual ones. It hands no connections over unless it is told to: most tests look at what happens without.
func (n *Node) startAgent(ctx context.Context, flags ...string) error {
	c := n.cluster
	config, err := c.credentials("godwit-agent", n.Name)
	if err != nil {
		return err
	}
	file := n.dir() + "/agent.kubeconfig"
	if err := c.WriteFile(ctx, file, config, 0o600); err != nil {
		return err
	}
	args := append([]string{
		"godwit-agent", "--node-name=" + n.Name, "--kubeconfig=" + file, "--ovs-db=unix:" + n.socket(),
		fmt.Sprintf("--sb-remote=tcp:%s:%d", vm.Outside, sbPort), "--underlay=" + underlayNet.String(), "--node-tls-dir=" + n.dir() + "/tls", "--pods-dir=" + n.podsDir(),
		"--cni-socket=" + n.dir() + "/cni.sock", "--cni-bin-dir=" + n.binDir(), "--cni-conf-dir=" + n.confDir(),
		"--metrics-address=" + netip.AddrPortFrom(n.address, metricsPort).String(), "--handoff=false",
	}, flags...)
	id, err := c.Start(ctx, control.Command{Netns: n.Name, Log: n.AgentLog(), Restart: true, Args: args})
	if err != nil {
		return err
	}
	n.agent = id
	if err := Await(ctx, "start the agent of "+n.Name, c.ready(netip.AddrPortFrom(n.address, metricsPort))); err != nil {
		return errors.Join(err, fmt.Errorf("logs:\n%s", c.Logs(context.WithoutCancel(ctx), 15)))
	}
	return nil
}

// RestartAgent ends the node's agent as a crash does, and returns when another, with flags besides the usual ones, is ready.
func (n *Node) RestartAgent(ctx context.Context, flags ...string) error {
	if err := n.cluster.Signal(ctx, n.agent, syscall.SIGKILL); err != nil {
		return err
	}
	return n.startAgent(ctx, flags...)
}

func (n *Node) binDir() string  { return filepath.Join(n.dir(), "bin") }
func (n *Node) confDir() string { return filepath.Join(n.dir(), "net.d") }

// AgentLog is the file of the machine that the node's agents log to.
func (n *Node) AgentLog() string { return filepath.Join(logDir, n.Name+"-godwit-agent.log") }

func (n *Node) podsDir() string { return filepath.Join(n.dir(), "pods") }

// ready asks for /readyz. The programs say there what they lack.
func (c *Cluster) ready(at netip.AddrPort) func(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("it is not ready: %s", body)
		}
		return err
	}
}
