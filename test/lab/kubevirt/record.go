package kubevirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// recorded is a line of a recording, in the format of pkg/migration's test Replay.
type recorded struct {
	T      float64         `json:"t"`
	Kind   string          `json:"kind"`
	Type   watch.EventType `json:"type"`
	Object client.Object   `json:"object"`
}

// Recording writes what watches of VMIs, VMIMs and their pods deliver: a line an event, the first ones being what exists already.
type Recording struct {
	api   client.WithWatch
	w     io.Writer
	start time.Time

	mu sync.Mutex
}

// NewRecording writes to w when it Runs.
func NewRecording(api *rest.Config, w io.Writer) (*Recording, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	c, err := client.NewWithWatch(api, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	return &Recording{api: c, w: w, start: time.Now()}, nil
}

// Run records until ctx ends, which is no error, or a watch breaks.
func (r *Recording) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.follow(ctx, "vmis", &kubevirtv1.VirtualMachineInstanceList{}) })
	g.Go(func() error { return r.follow(ctx, "vmims", &kubevirtv1.VirtualMachineInstanceMigrationList{}) })
	g.Go(func() error { return r.follow(ctx, "pods", &corev1.PodList{}, client.HasLabels{kubevirtv1.AppLabel}) })
	return g.Wait()
}

func (r *Recording) follow(ctx context.Context, kind string, list client.ObjectList, opts ...client.ListOption) error {
	w, err := r.api.Watch(ctx, list, opts...)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", kind, err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.ResultChan():
			switch {
			case ctx.Err() != nil:
				return nil
			case !ok:
				return fmt.Errorf("record %s: %w", kind, errors.New("the API server has ended the watch"))
			}
			if err := r.write(kind, e); err != nil {
				return fmt.Errorf("record %s: %w", kind, err)
			}
		}
	}
}

func (r *Recording) write(kind string, e watch.Event) error {
	o, ok := e.Object.(client.Object)
	if !ok {
		return fmt.Errorf("the watch delivered a %T", e.Object)
	}
	o.SetManagedFields(nil)
	gvk, err := r.api.GroupVersionKindFor(o)
	if err != nil {
		return err
	}
	o.GetObjectKind().SetGroupVersionKind(gvk)
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := json.Marshal(recorded{T: float64(time.Since(r.start).Milliseconds()) / 1000, Kind: kind, Type: e.Type, Object: o})
	if err != nil {
		return err
	}
	_, err = r.w.Write(append(b, '\n'))
	return err
}
