package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// subnetChoice finds the Subnet for what has none yet: for interfaces on the pod network, or on second networks.
type subnetChoice struct {
	api    client.Reader
	second bool
}

// on is the choice for interfaces on a network.
func (c subnetChoice) on(network string) subnetChoice {
	c.second = network != podNetwork
	return c
}

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

// openTo are the Subnets that pods and VMs of a namespace may be in without more rights than to make them: those that select it, by their names; the default one if none does. The
// first is for those that ask for none.
func (c subnetChoice) openTo(ctx context.Context, namespace string, subnets map[string]*v1alpha1.Subnet) ([]string, error) {
	var ns corev1.Namespace
	if err := c.api.Get(ctx, types.NamespacedName{Name: namespace}, &ns, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	var open []string
	for name, s := range subnets {
		if s.Spec.NamespaceSelector == nil || s.DeletionTimestamp != nil || s.Spec.SecondNetworksOnly && !c.second {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(s.Spec.NamespaceSelector)
		if err != nil {
			continue // the Subnet's own condition says so
		}
		if sel.Matches(labels.Set(ns.Labels)) {
			open = append(open, name)
		}
	}
	if len(open) == 0 {
		return []string{DefaultSubnet}, nil
	}
	slices.Sort(open)
	return open, nil
}

// wished is the Subnet that an annotation asks for, or the namespace's if it asks for none. The error wraps errNotOpen if it is not for the namespace.
func (c subnetChoice) wished(ctx context.Context, namespace, asked string) (string, error) {
	name, err := c.allowed(ctx, namespace, asked)
	if errors.Is(err, errNotOpen) {
		err = fmt.Errorf("annotation %s: %w", v1alpha1.SubnetAnnotation, err)
	}
	return name, err
}

// allowed is wished for whoever asks.
func (c subnetChoice) allowed(ctx context.Context, namespace, asked string) (string, error) {
	subnets, err := c.subnets(ctx)
	if err != nil {
		return "", err
	}
	open, err := c.openTo(ctx, namespace, subnets)
	switch {
	case err != nil:
		return "", err
	case asked == "":
		return open[0], nil
	case slices.Contains(open, asked):
		return asked, nil
	}
	return asked, fmt.Errorf("Subnet %s is %w %s, for which there are: %s", asked, errNotOpen, namespace, strings.Join(open, " "))
}

// errNotOpen: a Subnet does not select a namespace, or there is no such Subnet.
var errNotOpen = errors.New("not for namespace")
