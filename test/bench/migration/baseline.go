package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

const (
	controllerName = "godwit-controller"
	// baselinesFlag lets the controller obey migration.AnnotationBaseline.
	baselinesFlag = "--migration-baselines"
	// rolloutTimeout is how long the controller may take to be replaced.
	rolloutTimeout = 2 * time.Minute
	poll           = 100 * time.Millisecond
)

// allowBaselines restarts the controllers with the flag, unless they have it, and returns when they are ready. The function that it returns takes it away again.
func (b *bench) allowBaselines(ctx context.Context) (func(context.Context) error, error) {
	nothing := func(context.Context) error { return nil }
	d, err := b.api.AppsV1().Deployments(lab.Namespace).Get(ctx, controllerName, metav1.GetOptions{})
	if err != nil {
		return nothing, fmt.Errorf("read Deployment %s: %w", controllerName, err)
	}
	before := d.Spec.Template.Spec.Containers[0].Args
	if slices.Contains(before, baselinesFlag) {
		return nothing, nil
	}
	b.log.Info("restarting the controllers with the baselines' flag")
	undo := func(ctx context.Context) error { return b.setArgs(ctx, before) }
	if err := b.setArgs(ctx, append(slices.Clone(before), baselinesFlag)); err != nil {
		return undo, err
	}
	return undo, b.awaitRollout(ctx)
}

func (b *bench) setArgs(ctx context.Context, args []string) error {
	patch, err := json.Marshal([]map[string]any{{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}})
	if err != nil {
		return fmt.Errorf("make a patch: %w", err)
	}
	_, err = b.api.AppsV1().Deployments(lab.Namespace).Patch(ctx, controllerName, types.JSONPatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("set the flags of Deployment %s: %w", controllerName, err)
	}
	return nil
}

// awaitRollout returns when all controllers are new ones and ready, and the old ones are gone.
func (b *bench) awaitRollout(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rolloutTimeout)
	defer cancel()
	for {
		d, err := b.api.AppsV1().Deployments(lab.Namespace).Get(ctx, controllerName, metav1.GetOptions{})
		if err == nil && rolledOut(d) {
			pods, err := b.api.CoreV1().Pods(lab.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
			if err == nil && len(pods.Items) == int(*d.Spec.Replicas) {
				return nil
			}
		}
		if pauseErr := pause(ctx, poll); pauseErr != nil {
			return fmt.Errorf("the controllers were not replaced: see godwit-lab kubectl -n %s describe deployment,pods: %w", lab.Namespace, errors.Join(err, pauseErr))
		}
	}
}

func rolledOut(d *appsv1.Deployment) bool {
	s, want := d.Status, *d.Spec.Replicas
	return s.ObservedGeneration == d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas == want && s.Replicas == want
}

// setKind tells the controller by which means the VM moves next.
func setKind(ctx context.Context, s *passage.Scene, kind migration.Baseline) error {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	if err := s.API.Get(ctx, s.VM.Key(), vmi); err != nil {
		return fmt.Errorf("read VMI %s: %w", s.VM, err)
	}
	from := client.MergeFrom(vmi.DeepCopy())
	delete(vmi.Annotations, migration.AnnotationBaseline)
	if kind != "" {
		metav1.SetMetaDataAnnotation(&vmi.ObjectMeta, migration.AnnotationBaseline, string(kind))
	}
	if err := s.API.Patch(ctx, vmi, from); err != nil {
		return fmt.Errorf("annotate VMI %s: %w", s.VM, err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
