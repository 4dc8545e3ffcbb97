package upgrade

import (
	"context"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// length bounds the traffic of a test, which takes five minutes on an idle machine.
const length = traffic.MaxLength

// TestInstallUpgrade goes from an older version to the checkout's and back, in the order that docs/install.md tells, under pods and a VM with traffic. At each skew on the way the VM migrates,
// and pods come and go.
func TestInstallUpgrade(t *testing.T) {
	older, newer, programs := versions(t)
	l := newLab(t, older, programs)
	c := install(t, l, older)
	s, err := passage.New(t.Context(), passage.Config{Lab: l, Log: fixture.Logger(t), Name: "upgrade"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // t.Context has ended by now
		defer cancel()
		if err := s.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Set(ctx); err != nil {
		t.Fatal(err)
	}
	c.scene = s
	if err := s.Serve(t.Context(), func(context.Context) error { return underTraffic(t, c, older, newer) }); err != nil { //nolint:contextcheck // it has the test's
		t.Error(err)
	}
}

// install applies a version to an empty cluster.
func install(t *testing.T, l *lab.Lab, v version) *course {
	t.Helper()
	client, err := l.Client()
	if err != nil {
		t.Fatal(err)
	}
	c := &course{l: l, client: client, runs: map[string]version{controllers: v}}
	for _, node := range l.NodeNames() {
		c.runs[node] = v
	}
	c.define(t, v)
	c.install(t, v)
	c.isSo(t)
	return c
}

// underTraffic goes there and back, and says what became of the traffic.
func underTraffic(t *testing.T, c *course, older, newer version) (err error) {
	if c.want, err = c.scene.State(t.Context()); err != nil {
		return err
	}
	ns := c.scene.Namespace
	pods := newPair(t, c.l, c.client, ns)
	vm := watchVM(t, pods.place, c.want.Addresses)
	held, err := c.scene.Exchange(t.Context(), passage.Holding(length))
	if err != nil {
		return err
	}
	began := time.Now()
	upgrade(t, c, newer)
	pods.keptAddresses(t, c.client, ns)
	t.Logf("%v: after %s", c, time.Since(began).Round(time.Second))
	downgrade(t, c, older)
	pods.keptAddresses(t, c.client, ns)
	t.Logf("%v: after %s", c, time.Since(began).Round(time.Second))

	to, from, err := held.Stop(t.Context())
	if err != nil {
		return err
	}
	judge(t, "from a pod to the VM", to.Result, nil)
	judge(t, "from the VM to a pod", from.Result, nil)
	between, err := pods.run.Stop(t.Context())
	if err != nil {
		return err
	}
	judge(t, "from pod to pod", between, c.phases)
	probed, err := vm.Stop(t.Context())
	if err != nil {
		return err
	}
	judge(t, "to the VM", probed, c.phases)
	return nil
}

// upgrade makes everything newer: definitions, controllers, one agent after another. The VM is on the first node in the beginning, and in the end.
func upgrade(t *testing.T, c *course, newer version) {
	nodes := c.l.NodeNames()
	c.define(t, newer)
	c.agentsChange(t, byHand)
	c.replaceControllers(t, newer)
	c.move(t, nodes[1])
	c.podsComeAndGo(t)

	c.replaceAgent(t, nodes[0], newer)
	c.move(t, nodes[0]) // from an old agent to a new one
	c.move(t, nodes[1]) // and back
	c.podsComeAndGo(t)

	c.replaceAgent(t, nodes[1], newer)
	c.replaceAgent(t, nodes[2], newer)
	c.agentsChange(t, byThemselves)
	c.move(t, nodes[0])
	c.podsComeAndGo(t)
	c.clean(t)
}

// downgrade makes everything older again but the definitions, in the same order. A migration is under way when controllers, and then its target's agent, are replaced.
func downgrade(t *testing.T, c *course, older version) {
	nodes := c.l.NodeNames()
	c.agentsChange(t, byHand)
	c.moveMeanwhile(t, nodes[1], func() {
		c.replaceControllers(t, older)
		c.replaceAgent(t, nodes[1], older)
	})
	c.move(t, nodes[2]) // to a new agent; by itself from an old one, unless it was rolled back
	c.move(t, nodes[0]) // from a new agent to a new one, and the controllers are old
	c.move(t, nodes[1]) // from a new one to an old one
	c.podsComeAndGo(t)

	c.replaceAgent(t, nodes[2], older)
	c.replaceAgent(t, nodes[0], older)
	c.agentsChange(t, byThemselves)
	c.move(t, nodes[0])
	c.podsComeAndGo(t)
	c.clean(t)
}
