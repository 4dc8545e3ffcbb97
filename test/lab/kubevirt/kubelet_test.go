package kubevirt

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// fakeKubelet plays scheduler and kubelets: pods get a node and run, end when their launcher does, and go when they are deleted.
type fakeKubelet struct {
	api       client.Client
	launchers *fakeLaunchers
	nodes     []string
}

func (k *fakeKubelet) run(ctx context.Context) error {
	for {
		var pods corev1.PodList
		if err := k.api.List(ctx, &pods); err != nil {
			return ignoreEnd(ctx, err)
		}
		for i := range pods.Items {
			if err := k.step(ctx, &pods.Items[i], pods.Items); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				return ignoreEnd(ctx, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ignoreEnd: an error after the end of ctx comes of that.
func ignoreEnd(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return err
}

func (k *fakeKubelet) step(ctx context.Context, p *corev1.Pod, all []corev1.Pod) error {
	status, ended := k.launchers.of(p.UID).ended()
	switch {
	case p.DeletionTimestamp != nil:
		k.launchers.of(p.UID).exit(0)
		return k.api.Delete(ctx, p, client.GracePeriodSeconds(0))
	case p.Spec.NodeName == "":
		node := k.place(p, all)
		if node == "" {
			return nil
		}
		return k.api.SubResource("binding").Create(ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}})
	case p.Status.Phase == corev1.PodPending && p.Spec.Containers[0].Image != noImage:
		return k.report(ctx, p, corev1.PodRunning, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	case p.Status.Phase == corev1.PodRunning && ended:
		phase := corev1.PodSucceeded
		if status != 0 {
			phase = corev1.PodFailed
		}
		return k.report(ctx, p, phase, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(status)}})
	}
	return nil
}

// place returns the first node that the pod's selector and anti-affinity allow, or nothing.
func (k *fakeKubelet) place(p *corev1.Pod, all []corev1.Pod) string {
	for _, n := range k.nodes {
		fits := true
		for key, value := range p.Spec.NodeSelector {
			fits = fits && key == corev1.LabelHostname && value == n
		}
		if a := p.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
			want := a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector.MatchLabels
			for i := range all {
				o := &all[i]
				done := o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed
				for key, value := range want {
					fits = fits && (o.UID == p.UID || done || o.Spec.NodeName != n || o.Labels[key] != value)
				}
			}
		}
		if fits {
			return n
		}
	}
	return ""
}

func (k *fakeKubelet) report(ctx context.Context, p *corev1.Pod, phase corev1.PodPhase, state corev1.ContainerState) error {
	from := client.MergeFromWithOptions(p.DeepCopy(), client.MergeFromWithOptimisticLock{})
	p.Status.Phase = phase
	p.Status.ContainerStatuses = nil
	for _, c := range p.Spec.Containers {
		s := corev1.ContainerStatus{Name: c.Name, State: state, Ready: state.Running != nil, Image: c.Image, ImageID: "x"}
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, s)
	}
	if len(p.Status.ContainerStatuses) == 0 {
		return errors.New("a pod without containers")
	}
	return k.api.Status().Patch(ctx, p, from)
}
