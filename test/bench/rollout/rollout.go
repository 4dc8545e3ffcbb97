// Package rollout restarts the lab's controllers with other flags.
package rollout

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
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
)

const (
	controllerName = "godwit-controller"
	// timeout is how long the controllers may take to be replaced.
	timeout = 2 * time.Minute
	poll    = 100 * time.Millisecond
)

// WithFlag restarts the controllers with the flag, unless they have it, and returns when they are ready. The function that it returns gives them back the flags that
// they had, and waits for nothing; it is to be called whatever the error.
func WithFlag(ctx context.Context, api kubernetes.Interface, flag string) (undo func(context.Context) error, err error) {
	undo = func(context.Context) error { return nil }
	d, err := api.AppsV1().Deployments(lab.Namespace).Get(ctx, controllerName, metav1.GetOptions{})
	if err != nil {
		return undo, fmt.Errorf("read Deployment %s: %w", controllerName, err)
	}
	before := d.Spec.Template.Spec.Containers[0].Args
	if slices.Contains(before, flag) {
		return undo, nil
	}
	undo = func(ctx context.Context) error { return setArgs(ctx, api, before) }
	if err := setArgs(ctx, api, append(slices.Clone(before), flag)); err != nil {
		return undo, err
	}
	return undo, Await(ctx, api)
}

func setArgs(ctx context.Context, api kubernetes.Interface, args []string) error {
	patch, err := json.Marshal([]map[string]any{{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}})
	if err != nil {
		return fmt.Errorf("make a patch: %w", err)
	}
	_, err = api.AppsV1().Deployments(lab.Namespace).Patch(ctx, controllerName, types.JSONPatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("set the flags of Deployment %s: %w", controllerName, err)
	}
	return nil
}

// Await returns when all controllers have the flags that they should have and are ready, and the old ones are gone.
func Await(ctx context.Context, api kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		d, err := api.AppsV1().Deployments(lab.Namespace).Get(ctx, controllerName, metav1.GetOptions{})
		if err == nil && rolledOut(d) {
			pods, err := api.CoreV1().Pods(lab.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
			if err == nil && len(pods.Items) == int(*d.Spec.Replicas) {
				return nil
			}
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("the controllers were not replaced: see godwit-lab kubectl -n %s describe deployment,pods: %w", lab.Namespace, errors.Join(err, context.Cause(ctx)))
		}
	}
}

func rolledOut(d *appsv1.Deployment) bool {
	s, want := d.Status, *d.Spec.Replicas
	return s.ObservedGeneration == d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas == want && s.Replicas == want
}
