// Package kernel tests Godwit on Open vSwitch's kernel datapath, in a virtual machine whose kernel has it: see docs/lab.md.
package kernel

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/kernel/control"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// scene is the part of the shared cluster that one test has: a namespace with pods, which go with the test.
type scene struct {
	*cluster.Cluster
	t         *testing.T
	namespace string
}

func newScene(t *testing.T, namespace string) *scene {
	t.Helper()
	s := &scene{Cluster: kernelCluster, t: t, namespace: namespace}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs in the virtual machine:\n%s", s.Logs(context.WithoutCancel(t.Context()), 12))
		}
	})
	if err := s.Namespace(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	return s
}

// in is the scene for a part of the test.
func (s *scene) in(t *testing.T) *scene {
	return &scene{Cluster: s.Cluster, t: t, namespace: s.namespace}
}

// pod is a new one with a server of traffic. It goes with the test.
func (s *scene) pod(node int, name string) *cluster.Pod {
	s.t.Helper()
	p, err := s.Nodes[node].Pod(s.t.Context(), types.NamespacedName{Namespace: s.namespace, Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	s.removed(p)
	return p
}

func (s *scene) removed(p *cluster.Pod) {
	s.t.Cleanup(func() {
		if err := p.Remove(context.WithoutCancel(s.t.Context())); err != nil {
			s.t.Errorf("remove pod %s: %v", p.Name, err)
		}
	})
}

// daemon runs a program in a namespace for the length of the test.
func (s *scene) daemon(netns string, args ...string) (log string) {
	s.t.Helper()
	log = fmt.Sprintf("/var/log/%s-%s-%d.log", netns, args[0], time.Now().UnixNano())
	pid, err := s.Start(s.t.Context(), control.Command{Netns: netns, Args: args, Log: log})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Signal(context.WithoutCancel(s.t.Context()), pid, 9); err != nil {
			s.t.Errorf("end %v: %v", args, err)
		}
	})
	return log
}

// traffic starts a server of traffic in a namespace, and returns who asks it.
func (s *scene) traffic(netns string) *traffic.Client {
	s.t.Helper()
	s.daemon(netns, "traffic", "serve")
	c := traffic.NewClientVia(&http.Transport{DialContext: s.DialIn(netns), DisableKeepAlives: true}, fmt.Sprintf("http://127.0.0.1:%d", traffic.ControlPort))
	ctx, cancel := context.WithTimeout(s.t.Context(), begunWithin)
	defer cancel()
	if err := c.Await(ctx); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// begunWithin is how long a server of traffic may take to start, and connections to open, on an emulated processor of a busy machine.
const begunWithin = 3 * time.Minute

// begin starts a run and returns when all of its connections are open. It tries again for a while: a node may not know yet who has just come to another, and says so by
// an error as soon as nobody has answered its ARP requests for three seconds.
func (s *scene) begin(c *traffic.Client, spec traffic.Spec) traffic.RunID {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), begunWithin)
	defer cancel()
	for {
		id, err := c.Start(ctx, spec)
		if err != nil {
			s.t.Fatal(err)
		}
		opened := c.AwaitOpen(ctx, id)
		if opened == nil {
			return id
		}
		r, err := c.Stop(s.t.Context(), id)
		if err != nil || ctx.Err() != nil {
			s.t.Fatalf("%v: %+v (%v)", opened, r, err)
		}
		s.t.Logf("once more: %v", opened)
	}
}

// stop ends a run of which nothing may be broken, and returns its result.
func (s *scene) stop(c *traffic.Client, run traffic.RunID) *traffic.Result {
	s.t.Helper()
	r, err := c.Stop(s.t.Context(), run)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, conn := range r.Connections {
		if conn.Broken != "" {
			s.t.Errorf("connection %d (%s to %s) is broken: %s: %s", conn.Number, conn.Kind, conn.Peer, conn.Broken, conn.Error)
		}
	}
	return r
}

// await waits for what other programs do in their own time.
func (s *scene) await(what string, check func(ctx context.Context) error) {
	s.t.Helper()
	if err := cluster.Await(s.t.Context(), what, check); err != nil {
		s.t.Fatal(err)
	}
}

// run runs a command in a namespace of the machine that must succeed.
func (s *scene) run(netns string, args ...string) string {
	s.t.Helper()
	out, err := s.In(s.t.Context(), netns, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// nb and vs run ovn-nbctl, and ovs-vsctl on a node; they must succeed.
func (s *scene) nb(args ...string) string {
	s.t.Helper()
	out, err := s.NBCtl(s.t.Context(), args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (s *scene) vs(n *cluster.Node, args ...string) string {
	s.t.Helper()
	out, err := n.VSCtl(s.t.Context(), args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
