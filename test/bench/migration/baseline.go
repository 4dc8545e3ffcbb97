package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
	"github.com/godwit-cni/godwit/test/bench/rollout"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// baselinesFlag lets the controller obey migration.AnnotationBaseline.
const baselinesFlag = "--migration-baselines"

// allowBaselines restarts the controllers with the flag, unless they have it, and returns when they are ready. The function that it returns takes it away again.
func (b *bench) allowBaselines(ctx context.Context) (func(context.Context) error, error) {
	b.log.Info("restarting the controllers with the baselines' flag, unless they have it")
	return rollout.WithFlag(ctx, b.api, baselinesFlag)
}

// setKind tells the controller by which means the VM moves next, and the agents: the source's asks the launcher that it has, which was made by the migration before.
func setKind(ctx context.Context, s *passage.Scene, kind migration.Baseline) error {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	if err := s.API.Get(ctx, s.VM.Key(), vmi); err != nil {
		return fmt.Errorf("read VMI %s: %w", s.VM, err)
	}
	from := client.MergeFrom(vmi.DeepCopy())
	delete(vmi.Annotations, migration.AnnotationBaseline)
	delete(vmi.Annotations, v1alpha1.SwitchoverAnnotation) // which the next launcher gets from the VMI
	switch kind {
	case "":
	case silent:
		metav1.SetMetaDataAnnotation(&vmi.ObjectMeta, v1alpha1.SwitchoverAnnotation, "false")
	default:
		metav1.SetMetaDataAnnotation(&vmi.ObjectMeta, migration.AnnotationBaseline, string(kind))
	}
	if err := s.API.Patch(ctx, vmi, from); err != nil {
		return fmt.Errorf("annotate VMI %s: %w", s.VM, err)
	}
	var launchers corev1.PodList
	if err := s.API.List(ctx, &launchers, client.InNamespace(s.Namespace), client.HasLabels{kubevirtv1.CreatedByLabel}); err != nil {
		return fmt.Errorf("list the launchers of %s: %w", s.VM, err)
	}
	for i := range launchers.Items {
		pod := &launchers.Items[i]
		from := client.MergeFrom(pod.DeepCopy())
		delete(pod.Annotations, v1alpha1.SwitchoverAnnotation)
		if kind == silent {
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, v1alpha1.SwitchoverAnnotation, "false")
		}
		if err := s.API.Patch(ctx, pod, from); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("annotate launcher %s of %s: %w", pod.Name, s.VM, err)
		}
	}
	return nil
}
