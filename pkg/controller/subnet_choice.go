package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// subnetChoice finds the Subnet for what has none yet.
type subnetChoice struct{ api client.Reader }

// subnets are all Subnets by name.
func (c subnetChoice) subnets(ctx context.Context) (map[string]*v1alpha1.Subnet, error) {
	var list v1alpha1.SubnetList
	if err := c.api.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Subnets: %w", err)
	}
	byName := map[string]*v1alpha1.Subnet{}
	for i := range list.Items {
		byName[list.Items[i].Name] = &list.Items[i]
	}
	return byName, nil
}

// choose is the Subnet for a namespace's new pods and VMs: of those that select it, the one whose name sorts first; else the default one.
func (c subnetChoice) choose(ctx context.Context, namespace string, subnets map[string]*v1alpha1.Subnet) (string, error) {
	var ns corev1.Namespace
	if err := c.api.Get(ctx, types.NamespacedName{Name: namespace}, &ns, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	chosen := ""
	for name, s := range subnets {
		if s.Spec.NamespaceSelector == nil || s.DeletionTimestamp != nil || chosen != "" && chosen < name {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(s.Spec.NamespaceSelector)
		if err != nil {
			continue // the Subnet's own condition says so
		}
		if sel.Matches(labels.Set(ns.Labels)) {
			chosen = name
		}
	}
	if chosen == "" {
		chosen = DefaultSubnet
	}
	return chosen, nil
}
