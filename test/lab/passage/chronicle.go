package passage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab/timeline"
)

// chronicle notes when this program was told of what KubeVirt does. KubeVirt's own timestamps are whole seconds.
type chronicle struct {
	mu     sync.Mutex
	began  bool
	known  map[string]bool
	stages []timeline.Stage
}

// begin starts to note: what was known before is no stage of the migration that begins.
func (c *chronicle) begin() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = true
	now := time.Now()
	c.stages = append(c.stages, timeline.Stage{At: now, Actor: timeline.KubeVirt, Name: "migration created"})
	return now
}

// take notes what an object says for the first time.
func (c *chronicle) take(object client.Object, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch o := object.(type) {
	case *kubevirtv1.VirtualMachineInstanceMigration:
		phases := map[kubevirtv1.VirtualMachineInstanceMigrationPhase]string{
			kubevirtv1.MigrationPreparingTarget: "handed to the target", kubevirtv1.MigrationTargetReady: "target ready",
			kubevirtv1.MigrationRunning: "migration runs", kubevirtv1.MigrationSucceeded: "migration succeeded", kubevirtv1.MigrationFailed: "migration failed",
		}
		if name, ok := phases[o.Status.Phase]; ok {
			c.note(string(o.UID), timeline.Stage{At: at, Name: name, Detail: o.Name})
		}
	case *kubevirtv1.VirtualMachineInstance:
		if s := o.Status.MigrationState; s != nil && s.TargetNodeDomainReadyTimestamp != nil {
			c.note(string(s.MigrationUID), timeline.Stage{At: at, Name: "VM ready on the target", Detail: s.TargetPod})
		}
		if node := o.Status.NodeName; node != "" {
			c.note(string(o.UID), timeline.Stage{At: at, Name: "VMI says " + node})
		}
	case *corev1.Pod:
		c.note(string(o.UID), timeline.Stage{At: at, Name: "target pod created", Detail: o.Name})
		if o.Spec.NodeName != "" {
			c.note(string(o.UID), timeline.Stage{At: at, Name: "target pod scheduled", Detail: o.Spec.NodeName})
		}
		if o.Status.Phase == corev1.PodRunning {
			c.note(string(o.UID), timeline.Stage{At: at, Name: "target pod runs", Detail: o.Name})
		}
	}
}

// note adds a stage of an object unless it is known. c.mu is held.
func (c *chronicle) note(object string, s timeline.Stage) {
	key := object + "/" + s.Name
	if c.known[key] {
		return
	}
	if c.known == nil {
		c.known = map[string]bool{}
	}
	c.known[key] = true
	if c.began {
		s.Actor = timeline.KubeVirt
		c.stages = append(c.stages, s)
	}
}

// follow lets a chronicle take what changes in the scene's namespace, until the function that it returns is called, which returns the stages.
func (s *Scene) follow(ctx context.Context, c *chronicle) func() ([]timeline.Stage, error) {
	ctx, cancel := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(ctx)
	for _, list := range []client.ObjectList{&kubevirtv1.VirtualMachineInstanceMigrationList{}, &kubevirtv1.VirtualMachineInstanceList{}} {
		g.Go(func() error { return s.watch(gctx, c, list) })
	}
	g.Go(func() error { return s.watch(gctx, c, &corev1.PodList{}, client.HasLabels{kubevirtv1.AppLabel}) })
	return func() ([]timeline.Stage, error) {
		cancel()
		err := g.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.stages, err
	}
}

func (s *Scene) watch(ctx context.Context, c *chronicle, list client.ObjectList, opts ...client.ListOption) error {
	w, err := s.API.Watch(ctx, list, append(opts, client.InNamespace(s.Namespace))...)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch what KubeVirt does: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.ResultChan():
			if !ok && ctx.Err() == nil {
				return errors.New("watch what KubeVirt does: the API server has ended the watch")
			}
			if o, is := e.Object.(client.Object); is {
				c.take(o, time.Now())
			}
		}
	}
}
