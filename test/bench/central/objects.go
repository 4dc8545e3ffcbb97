package central

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// creators is how many of the bench's own requests to the API server are under way at once.
const creators = 32

// NodeName is the name of a node, from 0.
func NodeName(i int) string { return fmt.Sprintf("node-%03d", i) }

// AddNodes registers nodes 0 to n-1, whose agents have published an MTU.
func (c *Cluster) AddNodes(ctx context.Context, n int) error {
	return Each(ctx, Range{To: n}, func(ctx context.Context, i int) error {
		return c.API.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: NodeName(i), Annotations: map[string]string{v1alpha1.MTUAnnotation: "1442"}}})
	})
}

// NewPod is a pod as the scheduler leaves it, with the label app.
func NewPod(namespace, name, node, app string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}, AutomountServiceAccountToken: new(bool),
		},
	}
}

// Range is the numbers from From to To-1.
type Range struct {
	From, To int
	// AtOnce is how many are worked on at a time, 32 if it is 0.
	AtOnce int
}

// Each calls do for each number, several at once, until one fails.
func Each(ctx context.Context, r Range, do func(context.Context, int) error) error {
	if r.AtOnce == 0 {
		r.AtOnce = creators
	}
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(r.AtOnce)
	for i := r.From; i < r.To && within.Err() == nil; i++ {
		g.Go(func() error { return do(within, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx) // what was not begun is not done
}
