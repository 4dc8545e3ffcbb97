package controller

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// controllers are the pods that an API server lists.
type controllers struct {
	client.Reader
	pods []corev1.Pod
	err  error
}

func (c *controllers) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if out, ok := list.(*corev1.PodList); ok {
		out.Items = c.pods
	}
	return c.err
}

// A leader ends when it is without databases for long and another has them; not before, and not when nobody has.
func TestStandDown(t *testing.T) {
	pod := func(name string, ready corev1.ConditionStatus) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: "node-of-" + name},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
		}
	}
	self, other, waiting := pod("self", corev1.ConditionFalse), pod("other", corev1.ConditionTrue), pod("other", corev1.ConditionFalse)
	leaving := *other.DeepCopy()
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	const long = standDownAfter + time.Second
	for name, tc := range map[string]struct {
		pods []corev1.Pod
		err  error
		// reached are the looks at which the databases were reached, each after a second.
		reached func(look int) bool
		want    bool
	}{
		"another is ready":          {pods: []corev1.Pod{self, other}, reached: func(int) bool { return false }, want: true},
		"nobody is":                 {pods: []corev1.Pod{self, waiting}, reached: func(int) bool { return false }},
		"the other leaves":          {pods: []corev1.Pod{self, leaving}, reached: func(int) bool { return false }},
		"it has no other":           {pods: []corev1.Pod{self}, reached: func(int) bool { return false }},
		"the API does not answer":   {pods: []corev1.Pod{other}, err: errors.New("away"), reached: func(int) bool { return false }},
		"they are reached":          {pods: []corev1.Pod{self, other}, reached: func(int) bool { return true }},
		"they are away for moments": {pods: []corev1.Pod{self, other}, reached: func(look int) bool { return look%10 == 9 }},
	} {
		now, look := time.Unix(1_800_000_000, 0), 0
		s := &standDown{
			api: &controllers{pods: tc.pods, err: tc.err}, now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler),
			connected: func() bool { return tc.reached(look) },
		}
		var err error
		for ; err == nil && look <= int(2*long/time.Second); look++ {
			err = s.look(t.Context())
			now = now.Add(time.Second)
		}
		if (err != nil) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
		if tc.want && (look < int(standDownAfter/time.Second) || !strings.Contains(err.Error(), "pod other on node-of-other is ready")) {
			t.Errorf("%s: after %d s: %v", name, look, err)
		}
	}
}
