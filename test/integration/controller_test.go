package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovn"
)

// TestController runs all scenarios on one API server and one OVN, each in namespaces of its own: starting those takes longer than the scenarios.
func TestController(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.node(t, "n1")
	e.node(t, "n2")
	e.defaultSubnet(t) // or a scenario's own Subnet would be there first, and the default one would be at fault
	for name, scenario := range map[string]func(*testing.T, *env){
		"node joins":                  nodeJoins,
		"pod gets identity and port":  podGetsPort,
		"recreated pod":               recreatedPod,
		"finished pod":                finishedPod,
		"host network pod":            hostNetworkPod,
		"full Subnet":                 fullSubnet,
		"Subnets that cannot be":      badSubnets,
		"Subnet in use":               subnetInUse,
		"overlap":                     overlap,
		"another Subnet":              anotherSubnet,
		"namespace of another Subnet": relabelled,
		"Subnet of other namespaces":  opened,
		"excluded addresses":          excluded,
		"refused Subnets":             refusedSubnets,
		"gateways":                    gatewaysStay,
		"forged annotations":          forgedAnnotations,
		"row deleted by hand":         rowDeleted,
		"row changed by hand":         rowChanged,
		"somebody else's row is kept": foreignRow,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, e) })
	}
	// These stop the controller and start another.
	t.Run("restart", func(t *testing.T) { restart(t, e) })
	t.Run("Subnets at a restart", func(t *testing.T) { subnetsRestart(t, e) })
	t.Run("burst", func(t *testing.T) { burst(t, e) })
}

func key(ns, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: ns, Name: name}
}

func nodeJoins(t *testing.T, e *env) {
	var join v1alpha1.Join
	eventually(t, func() (err error) {
		var n corev1.Node
		if err := e.api.Get(t.Context(), types.NamespacedName{Name: "n1"}, &n); err != nil {
			return err
		}
		join, err = v1alpha1.ParseJoin(n.Annotations[v1alpha1.JoinAnnotation])
		return err
	})
	if len(join.IPs) != 2 || join.Gateways[0].String() != "100.64.0.1" || join.Gateways[1].String() != "fd98::1" {
		t.Errorf("join is %+v", join)
	}
	lsp, err := e.nb.Port(t.Context(), ident.NodePort("n1"))
	if err != nil || lsp == nil {
		t.Fatalf("port of n1: %v %v", lsp, err)
	}
	if len(join.Clients) != 2 {
		t.Fatalf("join has clients %v, want one of each family", join.Clients)
	}
	want := []string{fmt.Sprintf("%s %s %s %s %s", join.MAC, join.IPs[0].Addr(), join.IPs[1].Addr(), join.Clients[0].Addr(), join.Clients[1].Addr())}
	if d := cmp.Diff(want, lsp.Addresses); d != "" {
		t.Errorf("addresses of n1 (-want +got)\n%s", d)
	}
	if got := lsp.Options["requested-chassis"]; got != "n1" {
		t.Errorf("requested-chassis %q", got)
	}
}

func podGetsPort(t *testing.T, e *env) {
	e.namespace(t, "plain", nil)
	k := key("plain", "a.b")
	p := e.pod(t, k, "")
	eventually(t, func() error { _, err := e.identity(t.Context(), k); return err })
	if lsp, err := e.port(t.Context(), k); err == nil {
		t.Errorf("pod without a node has port %v", lsp)
	}
	bind := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: "n2"}}
	if err := e.api.SubResource("binding").Create(t.Context(), p, bind); err != nil {
		t.Fatal(err)
	}
	id, lsp := e.served(t, k)
	addresses := fmt.Sprintf("%s %s %s", id.MAC, id.IPs[0].Addr(), id.IPs[1].Addr())
	if d := cmp.Diff([]string{addresses}, lsp.Addresses); d != "" {
		t.Errorf("addresses (-want +got)\n%s", d)
	}
	if d := cmp.Diff([]string{addresses}, lsp.PortSecurity); d != "" {
		t.Errorf("port_security (-want +got)\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"requested-chassis": "n2", "iface-id-ver": string(p.UID)}, lsp.Options); d != "" {
		t.Errorf("options (-want +got)\n%s", d)
	}
	if id.MTU != 1442 || id.Subnet != "default" || id.Gateways[0].String() != "10.244.0.1" {
		t.Errorf("identity %+v", id)
	}
}

func recreatedPod(t *testing.T, e *env) {
	e.namespace(t, "again", map[string]string{"subnet": "again"})
	k := key("again", "p")
	e.pod(t, k, "n1")
	first, row := e.served(t, k)
	e.deletePod(t, k)
	e.pod(t, k, "n2")
	second, row2 := e.served(t, k)
	if first.PodUID == second.PodUID || row.UUID == row2.UUID || row2.Options["requested-chassis"] != "n2" {
		t.Errorf("recreated pod has the first one's port: %v", row2)
	}
}

func finishedPod(t *testing.T, e *env) {
	e.namespace(t, "done", nil)
	k := key("done", "job")
	p := e.pod(t, k, "n1")
	e.served(t, k)
	finished := client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Succeeded"}}`))
	if err := e.api.Status().Patch(t.Context(), p, finished); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return e.noPort(t.Context(), k) })
}

func (e *env) noPort(ctx context.Context, k types.NamespacedName) error {
	if lsp, err := e.port(ctx, k); err == nil {
		return fmt.Errorf("pod %s still has port %s", k, lsp.Name)
	}
	return nil
}

func hostNetworkPod(t *testing.T, e *env) {
	e.namespace(t, "host", nil)
	host := newPod(key("host", "h"), "n1")
	host.Spec.HostNetwork = true
	if err := e.api.Create(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	e.pod(t, key("host", "after"), "n1")
	e.served(t, key("host", "after")) // the controller has seen both by now
	if _, err := e.identity(t.Context(), key("host", "h")); err == nil {
		t.Error("a pod on the host's network has an identity")
	}
	if err := e.noPort(t.Context(), key("host", "h")); err != nil {
		t.Error(err)
	}
}

// burst: pods that arrive together become few transactions, and no two get one address.
func burst(t *testing.T, e *env) {
	const n = 120
	e.namespace(t, "burst", nil)
	e.stop()
	for i := range n {
		e.pod(t, key("burst", fmt.Sprint("p", i)), "n1")
	}
	before := e.journal.quiet(t)
	e.start(t)
	seen := map[netip.Prefix]int{}
	for i := range n {
		id, _ := e.served(t, key("burst", fmt.Sprint("p", i)))
		for _, ip := range id.IPs {
			if j, dup := seen[ip]; dup {
				t.Errorf("p%d and p%d both have %s", i, j, ip)
			}
			seen[ip] = i
		}
	}
	got := len(e.journal.since(before))
	t.Logf("%d pods in %d northbound transactions", n, got)
	if got > n/2 {
		t.Errorf("%d northbound transactions for %d pods", got, n)
	}
}

func subnet(name string, spec v1alpha1.SubnetSpec) *v1alpha1.Subnet {
	return &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

func selects(value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"subnet": value}}
}

// ready waits for the condition's reason.
func (e *env) ready(t *testing.T, name, reason string) *v1alpha1.Subnet {
	t.Helper()
	var s v1alpha1.Subnet
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), types.NamespacedName{Name: name}, &s); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(s.Status.Conditions, "Ready"); c == nil || c.Reason != reason {
			return fmt.Errorf("Subnet %s: condition %+v, want reason %s", name, c, reason)
		}
		return nil
	})
	return &s
}

// eventOf is an error while a pod has no event of that reason.
func (e *env) eventOf(t *testing.T, pod types.NamespacedName, reason string) error {
	var events eventsv1.EventList
	if err := e.api.List(t.Context(), &events, client.InNamespace(pod.Namespace)); err != nil {
		return err
	}
	for _, ev := range events.Items {
		if ev.Reason == reason && ev.Regarding.Name == pod.Name && strings.Contains(ev.Note, "Subnet ") {
			return nil
		}
	}
	return fmt.Errorf("no event %s of pod %s among %d", reason, pod, len(events.Items))
}

// fullSubnet: the pod that finds no address waits with an event, and gets one when it is freed.
func fullSubnet(t *testing.T, e *env) {
	spec := v1alpha1.SubnetSpec{CIDRs: []string{"10.99.0.0/30"}, NamespaceSelector: selects("full")}
	if err := e.api.Create(t.Context(), subnet("full", spec)); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "full", "InNetwork")
	e.namespace(t, "full", map[string]string{"subnet": "full"})
	e.pod(t, key("full", "a"), "n1")
	id, _ := e.served(t, key("full", "a"))
	if got := id.IPs[0].String(); got != "10.99.0.2/30" {
		t.Errorf("the only address is 10.99.0.2/30, got %s", got)
	}
	e.pod(t, key("full", "b"), "n1")
	eventually(t, func() error { return e.eventOf(t, key("full", "b"), "SubnetFull") })
	eventually(t, func() error {
		s := e.ready(t, "full", "InNetwork")
		if s.Status.UsedIPs != 1 || s.Status.AvailableIPs != 0 {
			return fmt.Errorf("status %+v, want 1 used, 0 available", s.Status)
		}
		return nil
	})
	e.deletePod(t, key("full", "a"))
	e.served(t, key("full", "b"))
}

// badSubnets are refused at admission, by the schema, with words that help.
func badSubnets(t *testing.T, e *env) {
	for name, c := range map[string]struct {
		spec v1alpha1.SubnetSpec
		says string
	}{
		"no cidr":         {v1alpha1.SubnetSpec{CIDRs: []string{}}, "at least 1"},
		"garbage":         {v1alpha1.SubnetSpec{CIDRs: []string{"10.0.0"}}, "network addresses with a prefix length"},
		"host bits":       {v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.1/24"}}, "network addresses with a prefix length"},
		"one family":      {v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.0/24", "10.8.0.0/24"}}, "different families"},
		"too small":       {v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.0/31"}}, "between /8 and /30"},
		"gateway outside": {v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.0/24"}, Gateways: []string{"10.8.0.1"}}, "every gateway must be an address in one of cidrs"},
		"gateway missing": {v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.0/24", "fd09::/64"}, Gateways: []string{"10.9.0.1"}}, "one address for each"},
		"exclude outside": {v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.0/24"}, ExcludeIPs: []string{"10.9.0.5-10.9.1.5"}}, "FIRST-LAST in one of cidrs"},
		"tiny mtu":        {v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.0/24"}, MTU: 100}, "1280"},
	} {
		err := e.api.Create(t.Context(), subnet("bad", c.spec))
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.says)
		}
	}
	var s v1alpha1.Subnet
	if err := e.api.Get(t.Context(), types.NamespacedName{Name: "default"}, &s); err != nil {
		t.Fatal(err)
	}
	before := s.DeepCopy()
	s.Spec.CIDRs = []string{"10.0.0.0/16"}
	if err := e.api.Patch(t.Context(), &s, client.MergeFrom(before)); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "cannot be changed") {
		t.Errorf("changing cidrs: %v", err)
	}
}

// subnetInUse: a Subnet that is deleted stays until its last pod is gone, and says so.
func subnetInUse(t *testing.T, e *env) {
	s := subnet("used", v1alpha1.SubnetSpec{CIDRs: []string{"10.98.0.0/24"}, NamespaceSelector: selects("used")})
	if err := e.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "used", "InNetwork")
	e.namespace(t, "used", map[string]string{"subnet": "used"})
	e.pod(t, key("used", "a"), "n1")
	e.served(t, key("used", "a"))
	if err := e.api.Delete(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "used", "Terminating")
	e.deletePod(t, key("used", "a"))
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), types.NamespacedName{Name: "used"}, s); !apierrors.IsNotFound(err) {
			return errors.Join(errors.New("Subnet used is still there"), err)
		}
		return nil
	})
	eventually(t, func() error {
		if ls, err := e.nb.Switch(t.Context(), ident.SubnetSwitch("used")); ls != nil || err != nil {
			return errors.Join(errors.New("its switch is still there"), err)
		}
		return nil
	})
}

func overlap(t *testing.T, e *env) {
	for name, cidr := range map[string]string{"over-default": "10.244.7.0/24", "over-join": "100.64.0.0/24"} {
		if err := e.api.Create(t.Context(), subnet(name, v1alpha1.SubnetSpec{CIDRs: []string{cidr}})); err != nil {
			t.Fatal(err)
		}
		e.ready(t, name, "Overlaps")
		if ls, err := e.nb.Switch(t.Context(), ident.SubnetSwitch(name)); ls != nil || err != nil {
			t.Errorf("%s has a switch: %v %v", name, ls, err)
		}
	}
}

// forgedAnnotations: nobody but the controller writes an identity, by whatever door.
func forgedAnnotations(t *testing.T, e *env) {
	e.namespace(t, "forged", nil)
	victim := key("forged", "victim")
	e.pod(t, victim, "n1")
	stolen, _ := e.served(t, victim)
	p := newPod(key("forged", "thief"), "n1")
	p.Annotations = map[string]string{v1alpha1.IdentityAnnotation: stolen.Text()}
	if err := e.api.Create(t.Context(), p); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "godwit-controller alone") {
		t.Errorf("creating a pod with an identity: %v", err)
	}
	unbound := e.pod(t, key("forged", "unbound"), "")
	thief := e.pod(t, key("forged", "thief"), "n1")
	own, _ := e.served(t, key("forged", "thief"))
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.IdentityAnnotation, stolen.Text()))
	for door, err := range map[string]error{
		"patch":        e.api.Patch(t.Context(), thief.DeepCopy(), patch),
		"status patch": e.api.Status().Patch(t.Context(), thief.DeepCopy(), patch),
		"binding": e.api.SubResource("binding").Create(t.Context(), unbound, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: "forged", Name: "unbound", Annotations: map[string]string{v1alpha1.IdentityAnnotation: stolen.Text()}},
			Target:     corev1.ObjectReference{Kind: "Node", Name: "n1"},
		}),
		"removal": e.api.Patch(t.Context(), thief.DeepCopy(), client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, v1alpha1.IdentityAnnotation))),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want Forbidden", door, err)
		}
	}
	if now, err := e.identity(t.Context(), key("forged", "thief")); err != nil || !cmp.Equal(own.Text(), now.Text()) {
		t.Errorf("identity changed from %v to %v: %v", own, now, err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	err := e.api.Patch(t.Context(), node, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"x"}}}`, v1alpha1.JoinAnnotation)))
	if !apierrors.IsForbidden(err) {
		t.Errorf("join annotation: %v, want Forbidden", err)
	}
}

func rowDeleted(t *testing.T, e *env) {
	e.namespace(t, "vandal", nil)
	k := key("vandal", "p")
	e.pod(t, k, "n1")
	_, before := e.served(t, k)
	if err := e.nb.Apply(t.Context(), ovn.DeletePort(ident.PortName(before.Name))); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		after, err := e.port(t.Context(), k)
		if err == nil && after.UUID == before.UUID {
			err = errors.New("not deleted yet")
		}
		return err
	})
}

func rowChanged(t *testing.T, e *env) {
	e.namespace(t, "meddler", nil)
	k := key("meddler", "p")
	e.pod(t, k, "n1")
	_, before := e.served(t, k)
	changed := *before
	changed.Options = map[string]string{"requested-chassis": "n2", "somebody": "else"}
	if err := e.nb.Apply(t.Context(), ovn.EnsurePort(ident.SubnetSwitch("default"), &changed)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		after, err := e.port(t.Context(), k)
		if err == nil && (after.Options["requested-chassis"] != "n1" || after.Options["somebody"] != "else") {
			err = fmt.Errorf("options %v, want ours restored and the other key kept", after.Options)
		}
		return err
	})
}

// foreignRow: a row of our name without our mark is never touched.
func foreignRow(t *testing.T, e *env) {
	e.namespace(t, "foreign", nil)
	e.pod(t, key("foreign", "ok"), "n1")
	_, lsp := e.served(t, key("foreign", "ok"))
	theirs := *lsp
	theirs.Name, theirs.ExternalIDs = string(ident.PodPort("foreign", "p", ident.DefaultNetwork)), map[string]string{"whose": "theirs"}
	if err := e.nb.Apply(t.Context(), ovn.EnsurePort(ident.SubnetSwitch("default"), &theirs)); err != nil {
		t.Fatal(err)
	}
	mine := *lsp
	mine.Name = theirs.Name
	if err := e.nb.Apply(t.Context(), ovn.EnsurePort(ident.SubnetSwitch("default"), &mine)); !errors.Is(err, ovn.ErrNotOurs) {
		t.Errorf("ensure: %v, want ErrNotOurs", err)
	}
	if err := e.nb.Apply(t.Context(), ovn.DeletePort(ident.PortName(theirs.Name))); !errors.Is(err, ovn.ErrNotOurs) {
		t.Errorf("delete: %v, want ErrNotOurs", err)
	}
	after, err := e.port(t.Context(), key("foreign", "p"))
	if err != nil || after.ExternalIDs["whose"] != "theirs" || len(after.ExternalIDs) != 1 {
		t.Errorf("their row is %v: %v", after, err)
	}
}

// restart: what happened while no controller ran is made up for; who has an address keeps it.
func restart(t *testing.T, e *env) {
	e.namespace(t, "restart", nil)
	before := map[string]v1alpha1.Identity{}
	for _, name := range []string{"stays", "goes", "moves"} {
		e.pod(t, key("restart", name), "n1")
		before[name], _ = e.served(t, key("restart", name))
	}
	e.stop()
	e.deletePod(t, key("restart", "goes"))
	e.deletePod(t, key("restart", "moves"))
	e.pod(t, key("restart", "moves"), "n2")
	e.pod(t, key("restart", "new"), "n2")
	e.start(t)
	stays, _ := e.served(t, key("restart", "stays"))
	if stays.Text() != before["stays"].Text() {
		t.Errorf("identity was %s, is %s", before["stays"].Text(), stays.Text())
	}
	fresh, _ := e.served(t, key("restart", "new"))
	if fresh.IPs[0] == stays.IPs[0] {
		t.Errorf("two pods have %s", fresh.IPs[0])
	}
	_, moved := e.served(t, key("restart", "moves"))
	if moved.Options["requested-chassis"] != "n2" {
		t.Errorf("options %v", moved.Options)
	}
	eventually(t, func() error { return e.noPort(t.Context(), key("restart", "goes")) })
}
