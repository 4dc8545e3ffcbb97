package controller

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// subnetReader is a cache that holds Subnets of these names.
type subnetReader []string

func (s subnetReader) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return nil
}

func (s subnetReader) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	for _, name := range s {
		l := list.(*v1alpha1.SubnetList)
		l.Items = append(l.Items, v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return nil
}

func TestRestoration(t *testing.T) {
	for name, c := range map[string]struct {
		exist      []string
		reconciled []string
		after      time.Duration // until pods are served
	}{
		"all Subnets":                    {exist: []string{"default", "a"}, reconciled: []string{"a", "default"}},
		"the default one is still new":   {reconciled: []string{"default"}},
		"more than there were":           {exist: []string{"default"}, reconciled: []string{"b", "default"}},
		"one never is":                   {exist: []string{"default", "a"}, reconciled: []string{"default"}, after: restoreTimeout},
		"the default one never is there": {exist: []string{"a"}, reconciled: []string{"a"}, after: restoreTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRestoration()
				start := time.Now()
				go func() {
					if err := r.run(t.Context(), subnetReader(c.exist)); err != nil {
						t.Error(err)
					}
				}()
				synctest.Wait()
				if r.isDone() {
					t.Fatal("pods are served before any Subnet was reconciled")
				}
				for _, s := range c.reconciled {
					r.reconciled(s)
					r.reconciled(s)
				}
				if err := r.wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := time.Since(start); got != c.after {
					t.Errorf("pods are served after %s, want %s", got, c.after)
				}
			})
		})
	}
}

// TestRestorationEnds: a controller that stops leading meanwhile ends, and no pod is served.
func TestRestorationEnds(t *testing.T) {
	r := newRestoration()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.run(ctx, subnetReader{"default"}); err != nil {
		t.Fatal(err)
	}
	if r.isDone() {
		t.Error("pods are served")
	}
	if err := r.wait(ctx); err == nil {
		t.Error("a pod that is not served waits for nothing")
	}
}
