package controller

// Policy and namespace reconcilers.
// In:   NetworkPolicies, Namespaces (labels); of pods, VMs and nodes what their reconcilers tell (policies).
// Out:  PortGroup, AddressSet and ACL rows of ours, through ovn.PolicyWriter; events on NetworkPolicies in which something is wrong.

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/policy"
)

type policyReconciler struct {
	api      client.Reader
	nb       *ovn.NB
	policies *policies
	events   events.EventRecorder
	metrics  *metrics
	log      *slog.Logger
	// said has the resourceVersion, by policy.Key, of each bad NetworkPolicy as it was last told of: a write that fails is tried again, and that is no news of the policy.
	said sync.Map
}

// Reconcile implements reconcile.Reconciler.
func (r *policyReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.policies.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("NetworkPolicy %s: %w", req.NamespacedName, err)
	}
	var np networkingv1.NetworkPolicy
	key := policy.Key{Namespace: req.Namespace, Name: req.Name}
	err := r.api.Get(ctx, req.NamespacedName, &np)
	switch {
	case apierrors.IsNotFound(err):
		r.policies.tell(func(x *policy.Index) { x.DeletePolicy(key) })
		r.said.Delete(key)
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read NetworkPolicy %s: %w", req.NamespacedName, err)
	default:
		var problems []policy.Problem
		r.policies.tell(func(x *policy.Index) {
			x.SetPolicy(&np)
			problems = x.Problems(key)
		})
		r.report(&np, problems)
	}
	if err := r.nb.Apply(ctx, r.policies.pending()); err != nil {
		return reconcile.Result{}, fmt.Errorf("NetworkPolicy %s: %w", req.NamespacedName, err)
	}
	return reconcile.Result{}, nil
}

// report says what is wrong with a policy, once for each version of it.
func (r *policyReconciler) report(np *networkingv1.NetworkPolicy, problems []policy.Problem) {
	key := policy.Key{Namespace: np.Namespace, Name: np.Name}
	if len(problems) == 0 {
		r.said.Delete(key)
		return
	}
	if version, _ := r.said.Swap(key, np.ResourceVersion); version == np.ResourceVersion {
		return
	}
	for _, p := range problems {
		r.log.Warn("bad NetworkPolicy", "policy", key, "reason", p.Reason, "field", p.Field, "detail", p.Detail)
		r.metrics.policyProblems.WithLabelValues(string(p.Reason)).Inc()
		r.events.Eventf(np, nil, corev1.EventTypeWarning, string(p.Reason), "CompilePolicy", "%s: %s", p.Field, p.Detail)
	}
}

type namespaceReconciler struct {
	api      client.Reader
	nb       *ovn.NB
	policies *policies
}

// Reconcile implements reconcile.Reconciler.
func (r *namespaceReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.policies.wait(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("Namespace %s: %w", req.Name, err)
	}
	var ns corev1.Namespace
	err := r.api.Get(ctx, req.NamespacedName, &ns)
	switch {
	case apierrors.IsNotFound(err):
		r.policies.tell(func(x *policy.Index) { x.DeleteNamespace(req.Name) })
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read Namespace %s: %w", req.Name, err)
	default:
		r.policies.tell(func(x *policy.Index) { x.SetNamespace(ns.Name, ns.Labels) })
	}
	if err := r.nb.Apply(ctx, r.policies.pending()); err != nil {
		return reconcile.Result{}, fmt.Errorf("Namespace %s: %w", req.Name, err)
	}
	return reconcile.Result{}, nil
}
