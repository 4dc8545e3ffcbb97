package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/test/policy/objects"
)

// TestPolicyRows runs the controller against what the pure compiler makes of the objects in the API.
func TestPolicyRows(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	e.node(t, "n1")
	e.node(t, "n2")
	e.central.Chassis(t, "n1")
	e.central.Chassis(t, "n2")
	e.defaultSubnet(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"a pod is in its groups from its first moment", firstMoment},
		{"labels change", labelsChange},
		{"a pod of the same name and address", sameName},
		{"policies replaced at once", replaced},
		{"bad policy", badPolicy},
		{"a VM has its VMI's labels", vmLabels},
		{"a VM that never had a row", neverInTheNetwork},
		{"group deleted by hand", groupDeleted},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, e) })
		e.policiesAsCompiled(t)
	}
	policyRestart(t, e) // no subtest: the controller that it starts ends with its test
	e.central.EmptyNB(t)
	e.policiesAsCompiled(t)
}

// policiesAsCompiled waits until the database has what the objects in the API come to.
func (e *env) policiesAsCompiled(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		want, err := e.compiled(t.Context())
		if err != nil {
			return err
		}
		if d := stored(t, e.central).differs(want); d != "" {
			return errors.New(d)
		}
		return nil
	})
}

// compiled is what the objects in the API come to.
func (e *env) compiled(ctx context.Context) (policy.Rows, error) {
	o, err := objects.Read(ctx, e.api)
	if err != nil {
		return policy.Rows{}, err
	}
	return policy.Compile(policy.Config{Join: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd98::/64")}}, o.Snapshot()), nil
}

// deny is a policy that isolates what has a label in ingress, but for what has another.
func deny(k types.NamespacedName, app, from string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"peers": "yes"}},
				PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}},
			}}}},
		},
	}
}

func (e *env) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := e.api.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

func (e *env) label(t *testing.T, o client.Object, name, value string) {
	t.Helper()
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, name, value))
	if err := e.api.Patch(t.Context(), o, patch); err != nil {
		t.Fatal(err)
	}
}

func labelledPod(k types.NamespacedName, node, app string) *corev1.Pod {
	p := newPod(k, node)
	p.Labels = map[string]string{"app": app}
	return p
}

// isolated says whether a port is in the group of pods that are isolated in ingress.
func (s storedRows) isolated(port ident.PortName) bool {
	return s.groups[policy.IngressGroup][string(port)]
}

// The row of a pod that a policy selects is never in the database without being in its group: OVN would let everything in meanwhile.
func firstMoment(t *testing.T, e *env) {
	e.namespace(t, "first", map[string]string{"peers": "yes"})
	e.create(t, deny(key("first", "deny"), "db", "front"))
	e.policiesAsCompiled(t)
	k := key("first", "db")
	e.create(t, labelledPod(k, "n1", "db"), labelledPod(key("first", "front"), "n2", "front"))
	name := ident.PodPort(k.Namespace, k.Name, ident.DefaultNetwork)
	eventually(t, func() error {
		rows := stored(t, e.central)
		for _, port := range rows.ports {
			if port == string(name) {
				if !rows.isolated(name) {
					t.Error("the row is there and is not in its group")
				}
				return nil
			}
		}
		return errors.New("no row")
	})
}

// A pod's label and a namespace's change members and nothing else.
func labelsChange(t *testing.T, e *env) {
	before := stored(t, e.central)
	k := key("first", "db")
	e.label(t, newPod(k, ""), "app", "other")
	e.policiesAsCompiled(t)
	if stored(t, e.central).isolated(ident.PodPort(k.Namespace, k.Name, ident.DefaultNetwork)) {
		t.Error("a pod that no policy selects any more is isolated")
	}
	e.label(t, newPod(k, ""), "app", "db")
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "first"}}
	e.label(t, ns, "peers", "no")
	e.policiesAsCompiled(t)
	e.label(t, ns, "peers", "yes")
	e.policiesAsCompiled(t)
	if after := stored(t, e.central); fmt.Sprint(after.aclUUIDs) != fmt.Sprint(before.aclUUIDs) {
		t.Errorf("ACLs were %v, are %v", before.aclUUIDs, after.aclUUIDs)
	}
}

// A pod that gets another's name, and soon its address, gets none of its rights.
func sameName(t *testing.T, e *env) {
	k := key("first", "front")
	for range 3 {
		id, _ := e.served(t, k)
		e.deletePod(t, k)
		e.create(t, labelledPod(k, "n1", "stranger"))
		e.served(t, k)
		e.policiesAsCompiled(t)
		for set, addresses := range stored(t, e.central).sets {
			for _, ip := range id.IPs {
				if addresses[ip.Addr().String()] {
					t.Errorf("address set %s still has %s", set, ip.Addr())
				}
			}
		}
		e.deletePod(t, k)
		e.create(t, labelledPod(k, "n2", "front"))
		e.served(t, k)
	}
}

// Policies that are replaced many times within a second: what every version isolates is isolated all along, and the last one is what holds.
func replaced(t *testing.T, e *env) {
	e.namespace(t, "replaced", map[string]string{"peers": "yes"})
	k := key("replaced", "db")
	np := deny(key("replaced", "p"), "db", "front")
	e.create(t, np, labelledPod(k, "n1", "db"))
	e.served(t, k)
	e.policiesAsCompiled(t)
	name := ident.PodPort(k.Namespace, k.Name, ident.DefaultNetwork)
	over, watched := make(chan struct{}), make(chan int, 1)
	stop := sync.OnceFunc(func() { close(over) })
	defer stop()
	go func() {
		looks := 0
		defer func() { watched <- looks }()
		for {
			select {
			case <-over:
				return
			default:
			}
			if looks++; !stored(t, e.central).isolated(name) {
				t.Error("the pod was not isolated for a moment")
				return
			}
		}
	}()
	start := time.Now()
	for i := range 30 {
		spec := deny(key("replaced", "p"), "db", fmt.Sprint("front-", i)).Spec
		if i%2 == 0 {
			spec.PodSelector = metav1.LabelSelector{}
		}
		np.Spec = spec
		if err := e.api.Update(t.Context(), np); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("a policy was replaced 30 times in %s", time.Since(start).Round(time.Millisecond))
	e.policiesAsCompiled(t)
	stop()
	if looks := <-watched; looks < 3 {
		t.Errorf("it was looked at %d times meanwhile: too few to say anything", looks)
	}
	for i := range 10 { // deleted and made again under one name
		if err := e.api.Delete(t.Context(), np); err != nil {
			t.Fatal(err)
		}
		np = deny(key("replaced", "p"), "db", fmt.Sprint("last-", i))
		e.create(t, np)
	}
	e.policiesAsCompiled(t)
}

func badPolicy(t *testing.T, e *env) {
	e.namespace(t, "bad", nil)
	np := deny(key("bad", "p"), "db", "front")
	np.Annotations = map[string]string{policy.LogAnnotation: "loudly"}
	e.create(t, np, labelledPod(key("bad", "db"), "n1", "db"))
	e.served(t, key("bad", "db"))
	eventually(t, func() error {
		var list eventsv1.EventList
		err := e.api.List(t.Context(), &list, client.InNamespace("bad"))
		for i := range list.Items {
			if ev := &list.Items[i]; ev.Regarding.Kind == "NetworkPolicy" && ev.Reason == string(policy.ReasonInvalidLog) && strings.Contains(ev.Note, "loudly") {
				return err
			}
		}
		return errors.Join(err, fmt.Errorf("no event that says what is wrong, among %d", len(list.Items)))
	})
}

// When the labels of a VMI and of its launcher disagree, the VMI's count, before the launcher may attach, and whichever launcher carries it.
func vmLabels(t *testing.T, e *env) {
	vm := key("first", "vm")
	vmi := e.vmi(t, vm, func(vmi *kubevirtv1.VirtualMachineInstance) { vmi.Labels = map[string]string{"app": "db"} })
	pod := e.launcher(t, vmi, "launcher", "n1", nil)
	name := ident.VMPort(vm.Namespace, vm.Name, ident.DefaultNetwork)
	e.mayAttach(t, pod, v1alpha1.Attach{Chassis: "n1"})
	if !stored(t, e.central).isolated(name) {
		t.Error("a launcher may attach whose VM's port is not in its group yet")
	}
	e.label(t, pod, "app", "other")
	e.policiesAsCompiled(t)
	e.deletePod(t, client.ObjectKeyFromObject(pod))
	e.policiesAsCompiled(t)
	if !stored(t, e.central).isolated(name) {
		t.Error("without its launcher the VM is in no group")
	}
}

// neverInTheNetwork: what policies know of a VM goes with its Port, also where that never had a row, as while the northbound database is away. Here somebody else's is in the way.
func neverInTheNetwork(t *testing.T, e *env) {
	vm := key("first", "rowless")
	e.central.Transact(t,
		map[string]any{"op": "insert", "table": "Logical_Switch_Port", "uuid-name": "theirs", "row": map[string]any{"name": string(ident.VMPort(vm.Namespace, vm.Name, ident.DefaultNetwork))}},
		map[string]any{"op": "insert", "table": "Logical_Switch", "row": map[string]any{"name": "theirs", "ports": []any{"named-uuid", "theirs"}}})
	peers := func() (n int) {
		for _, addresses := range stored(t, e.central).sets {
			n += len(addresses)
		}
		return n
	}
	before, i := peers(), 0
	vmi := e.vmi(t, vm, func(vmi *kubevirtv1.VirtualMachineInstance) { vmi.Labels = map[string]string{"app": "front"} })
	eventually(t, func() error {
		if i++; i%20 == 1 { // what comes next writes what the Port could not
			e.create(t, labelledPod(key("first", fmt.Sprint("next-", i)), "n1", "nobody"))
		}
		if peers() <= before {
			return errors.New("the VM is in no set: the test shows nothing")
		}
		return nil
	})
	if err := e.api.Delete(t.Context(), vmi, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	port := &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: vm.Namespace, Name: vm.Name}}
	if err := client.IgnoreNotFound(e.api.Delete(t.Context(), port)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), vm, port); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the Port is still there (%w)", err)
		}
		return nil
	})
	if got := peers(); got != before {
		t.Errorf("policies let %d addresses in when the Port is gone, want %d as before it came", got, before)
	}
	e.central.Transact(t, map[string]any{"op": "delete", "table": "Logical_Switch", "where": []any{[]any{"name", "==", "theirs"}}})
}

// What has been deleted by hand is put back as soon as it is missed.
func groupDeleted(t *testing.T, e *env) {
	e.central.Transact(t, map[string]any{"op": "delete", "table": "Port_Group", "where": []any{[]any{"name", "==", policy.IngressGroup}}})
	e.create(t, labelledPod(key("first", "another"), "n1", "db"))
	e.served(t, key("first", "another"))
}

// A controller that starts finds everything as it left it, and mends what has happened meanwhile.
func policyRestart(t *testing.T, e *env) {
	e.stop()
	e.start(t)
	e.create(t, labelledPod(key("first", "fresh"), "n2", "db")) // what is served now is served by the new one
	e.served(t, key("first", "fresh"))
	e.policiesAsCompiled(t)
	e.stop()
	rows := stored(t, e.central)
	e.deletePod(t, key("first", "another"))
	e.label(t, newPod(key("first", "db"), ""), "app", "front")
	if err := e.api.Delete(t.Context(), deny(key("bad", "p"), "", "")); err != nil {
		t.Fatal(err)
	}
	e.create(t, deny(key("first", "second"), "front", "db"))
	e.start(t)
	e.policiesAsCompiled(t)
	if after := stored(t, e.central); fmt.Sprint(after.sets) == fmt.Sprint(rows.sets) {
		t.Error("nothing has changed: the test shows nothing")
	}
}
