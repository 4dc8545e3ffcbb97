package integration

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// centralLabel says which nodes may hold OVN's databases.
const centralLabel = "godwit.dev/ovn-central"

// A kubelet does not say of its own node that it may hold the databases, and with them the administrators' keys, by whatever door; what else kubelets write of their Nodes they write.
func TestKubeletsDoNotChooseCentral(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	if err := e.api.Create(t.Context(), &rbacv1.ClusterRoleBinding{ // what the Node authorizer gives
		ObjectMeta: metav1.ObjectMeta{Name: "kubelets"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:node"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:nodes"}},
	}); err != nil {
		t.Fatal(err)
	}
	kubelet := func(node string) client.Client {
		cfg := rest.CopyConfig(e.rest)
		cfg.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + node, Groups: []string{"system:nodes", "system:authenticated"}}
		api, err := client.New(cfg, client.Options{Scheme: e.api.Scheme()})
		if err != nil {
			t.Fatal(err)
		}
		return api
	}
	label := func(value string) client.Patch {
		return client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, centralLabel, value))
	}
	node := func(name string, labels map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	if err := e.api.Create(t.Context(), node("worker", nil)); err != nil {
		t.Fatal(err)
	}
	if err := e.api.Create(t.Context(), node("central", map[string]string{centralLabel: ""})); err != nil {
		t.Fatal(err)
	}
	worker, central := kubelet("worker"), kubelet("central")
	for door, try := range map[string]func() error{
		"a label": func() error { return worker.Patch(t.Context(), node("worker", nil), label(`""`), client.DryRunAll) },
		"a label, by status": func() error {
			return worker.Status().Patch(t.Context(), node("worker", nil), label(`""`), client.DryRunAll)
		},
		"another value": func() error { return central.Patch(t.Context(), node("central", nil), label(`"x"`), client.DryRunAll) },
		"removal":       func() error { return central.Patch(t.Context(), node("central", nil), label("null"), client.DryRunAll) },
		"a Node with a label": func() error {
			return kubelet("new").Create(t.Context(), node("new", map[string]string{centralLabel: ""}), client.DryRunAll)
		},
	} {
		eventually(t, func() error { // policies take a moment to come into force; what is let through until then must not count
			err := try()
			if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "an administrator does") {
				return fmt.Errorf("%s: %v, want it forbidden by the policy", door, err) //nolint:errorlint // it may be nil
			}
			return nil
		})
	}
	other := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"example.com/rack":"7"}}}`))
	for name, err := range map[string]error{
		"a kubelet's other label":                        worker.Patch(t.Context(), node("worker", nil), other),
		"a kubelet's other label of a node of databases": central.Patch(t.Context(), node("central", nil), other),
		"a kubelet's status":                             central.Status().Patch(t.Context(), node("central", nil), client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Running"}}`))),
		"a kubelet's Node without the label":             kubelet("plain").Create(t.Context(), node("plain", nil)),
		"an administrator's label":                       e.api.Patch(t.Context(), node("worker", nil), label(`""`)),
		"an administrator's removal":                     e.api.Patch(t.Context(), node("worker", nil), label("null")),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
