package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/demo"
	"github.com/godwit-cni/godwit/test/lab/fixture"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

const (
	component  = "app.kubernetes.io/component="
	controller = component + "controller"
	agent      = component + "agent"
	// crowd is how many pods start and end at each skew, one for each node.
	crowd = 3
)

// course is a change of versions, from its first step to its last.
type course struct {
	l      *lab.Lab
	client kubernetes.Interface
	scene  *passage.Scene
	// runs is each part's version: the controllers', and each node's agent's.
	runs map[string]version
	// want is what the VM must have.
	want   passage.State
	phases []phase
}

// controllers is the key of course.runs for both of them.
const controllers = "controllers"

// String says who runs what.
func (c *course) String() string {
	all := []string{controllers + " " + c.runs[controllers].name}
	for _, node := range c.l.NodeNames() {
		all = append(all, node+" "+c.runs[node].name)
	}
	return strings.Join(all, ", ")
}

// define applies a version's definitions.
func (c *course) define(t *testing.T, v version) {
	t.Helper()
	definitions, _, err := c.l.Manifests(t.Context(), v.Release)
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, definitions)
}

// install applies the rest of a version's manifests.
func (c *course) install(t *testing.T, v version) {
	t.Helper()
	_, others, err := c.l.Manifests(t.Context(), v.Release)
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, others)
}

// apply lets kubectl apply objects from a file, as its user does.
func (c *course) apply(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	list := unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List"}}
	for _, o := range objects {
		list.Items = append(list.Items, *o)
	}
	b, err := list.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "manifests.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fixture.Kubectl(t.Context(), c.l, "apply", "-f", file); err != nil {
		t.Fatal(err)
	}
}

// How agents are replaced: when their pods are deleted, or by themselves.
const (
	byHand       = "OnDelete"
	byThemselves = "RollingUpdate"
)

// agentsChange says how agents are replaced from now on.
func (c *course) agentsChange(t *testing.T, how string) {
	t.Helper()
	patch := `{"spec":{"updateStrategy":{"type":"` + how + `"}}}`
	if _, err := fixture.Kubectl(t.Context(), c.l, "-n", lab.Namespace, "patch", "daemonset", "godwit-agent", "--patch", patch); err != nil {
		t.Fatal(err)
	}
}

// replaceControllers applies a version and returns when both controllers are of it. Agents stay as they are.
func (c *course) replaceControllers(t *testing.T, v version) {
	t.Helper()
	c.during("controllers become "+v.name, func() {
		c.install(t, v)
		if _, err := fixture.Kubectl(t.Context(), c.l, "-n", lab.Namespace, "rollout", "status", "--timeout="+patience.String(), "deployment/godwit-controller"); err != nil {
			t.Fatal(err)
		}
	})
	c.runs[controllers] = v
	c.isSo(t)
}

// replaceAgent deletes a node's agent, and returns when the next one, of that version, is ready.
func (c *course) replaceAgent(t *testing.T, node string, v version) {
	t.Helper()
	c.during("the agent of "+node+" becomes "+v.name, func() {
		if _, err := fixture.Kubectl(t.Context(), c.l, "-n", lab.Namespace, "delete", "pod", "--selector="+agent, "--field-selector=spec.nodeName="+node); err != nil {
			t.Fatal(err)
		}
		c.runs[node] = v
		c.isSo(t)
	})
	c.pluginIsTheAgents(t, node)
}

// during notes when something was done.
func (c *course) during(part string, f func()) {
	p := phase{part: part, from: time.Now()}
	f()
	p.to = time.Now()
	c.phases = append(c.phases, p)
}

// isSo waits until all parts are ready, of the version that they are to be, and nobody else is there.
func (c *course) isSo(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		found := map[string]int{}
		for _, selector := range []string{controller, agent} {
			pods, err := c.client.CoreV1().Pods(lab.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
			if err != nil {
				return err
			}
			for i := range pods.Items {
				p := &pods.Items[i]
				part := p.Spec.NodeName
				if selector == controller {
					part = controllers
				}
				if image := p.Spec.Containers[0].Image; image != c.runs[part].Image {
					return fmt.Errorf("pod %s is of %s, want %s", p.Name, image, c.runs[part].Image)
				}
				if !ready(p) {
					return fmt.Errorf("pod %s is not ready", p.Name)
				}
				found[part]++
			}
		}
		for part := range c.runs {
			if found[part] == 0 {
				return fmt.Errorf("there is no pod for %s", part)
			}
		}
		return nil
	})
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// pluginIsTheAgents fails the test unless a node's CNI plugin is that of its agent's image.
func (c *course) pluginIsTheAgents(t *testing.T, node string) {
	t.Helper()
	const compare = `p=$(pidof godwit-agent) && cmp /proc/$p/root/usr/bin/godwit-cni /opt/cni/bin/godwit`
	if out, err := c.l.Exec(t.Context(), node, "sh", "-c", compare); err != nil {
		t.Errorf("%s has another CNI plugin than its agent's image: %s %v", node, out, err)
	}
}

// move migrates the VM to a node. It keeps its addresses and its port, and nothing of the migration is left.
func (c *course) move(t *testing.T, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began, source := time.Now(), c.want.Node
	g, err := c.scene.VM.Migrate(ctx, lab.MigrateOptions{To: to})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitSuccess(ctx); err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	c.want.Node = to
	c.settled(t)
	t.Logf("%v: a VM moved from %s to %s in %s", c, source, to, time.Since(began).Round(100*time.Millisecond))
}

// moveMeanwhile holds a migration when both QEMUs are there and before memory is copied, while f replaces parts. It succeeds then, or is rolled back.
func (c *course) moveMeanwhile(t *testing.T, to string, f func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	source := c.want.Node
	g, err := c.scene.VM.Migrate(ctx, lab.MigrateOptions{To: to, Hold: []kubevirt.Stage{kubevirt.StageMigrate}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitPhase(ctx, kubevirtv1.MigrationRunning, kubevirtv1.MigrationFailed); err != nil {
		t.Fatal(err)
	}
	f()
	if err := g.Release(ctx); err != nil {
		t.Fatal(err)
	}
	vmim, err := g.Await(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if vmim.Status.Phase == kubevirtv1.MigrationSucceeded {
		c.want.Node = to
	}
	c.settled(t)
	t.Logf("%v: the migration from %s to %s that was under way meanwhile: %s", c, source, to, vmim.Status.Phase)
}

// settled waits until the VM has what it had, where it is to be.
func (c *course) settled(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		now, err := c.scene.State(t.Context())
		return errors.Join(append(c.want.Changes(now), err)...)
	})
}

// podsComeAndGo starts pods on all nodes, which reach each other, and deletes them.
func (c *course) podsComeAndGo(t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := demo.Pods(t.Context(), demo.Config{Lab: c.l, Log: fixture.Logger(t), Out: t.Output()}, crowd); err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	// They are gone before the next part is replaced: a link that goes could be blamed for what is lost then.
	eventually(t, func() error {
		pods, err := c.client.CoreV1().Pods(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %s/%s is being deleted still", p.Namespace, p.Name)
			}
		}
		return nil
	})
	t.Logf("%v: pods started, reached each other and were deleted in %s", c, time.Since(began).Round(100*time.Millisecond))
}

// clean waits until API, databases, Open vSwitch and kernels say the same.
func (c *course) clean(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		diffs, err := c.l.Check(t.Context())
		if err == nil && len(diffs) > 0 {
			err = fmt.Errorf("%v: %d differences: %v", c, len(diffs), diffs)
		}
		return err
	})
}
