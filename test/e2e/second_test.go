package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// secondSubnet makes a Subnet for namespaces with a label, and removes it at the end.
func secondSubnet(t *testing.T, name, label string, cidrs map[string]string) {
	t.Helper()
	s := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}}
	s.Spec.SecondNetworksOnly, s.Spec.NamespaceSelector = true, &metav1.LabelSelector{MatchLabels: map[string]string{"second": label}}
	for _, family := range []string{lab.IPv4, lab.IPv6} {
		if cluster.IPFamily() == lab.DualStack || cluster.IPFamily() == family {
			s.Spec.CIDRs = append(s.Spec.CIDRs, cidrs[family])
		}
	}
	if err := cluster.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.api.Delete(context.WithoutCancel(t.Context()), s); err != nil {
			t.Error(err)
		}
	})
}

// nothingEnds waits until no namespace is being deleted, and no pod: containerd has whoever is there undo what the one before has done, and Multus then does nothing, Godwit
// a part.
func nothingEnds(ctx context.Context) error {
	return wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, patience(time.Minute), true, func(ctx context.Context) (bool, error) {
		var namespaces corev1.NamespaceList
		var pods corev1.PodList
		if err := errors.Join(cluster.api.List(ctx, &namespaces), cluster.api.List(ctx, &pods)); err != nil {
			return false, err
		}
		ends := slices.ContainsFunc(namespaces.Items, func(n corev1.Namespace) bool { return n.DeletionTimestamp != nil }) ||
			slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
		return !ends, nil
	})
}

// withMultus has Multus before Godwit until the test ends.
func withMultus(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience(2*time.Minute))
		defer cancel()
		if err := errors.Join(nothingEnds(ctx), cluster.StopMultus(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := nothingEnds(t.Context()); err != nil {
		t.Fatalf("wait until no pod is being deleted: %v", err)
	}
	if err := cluster.StartMultus(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// definition creates a NetworkAttachmentDefinition of Godwit's on a Subnet.
func definition(t *testing.T, ns, name, subnet string) {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": map[string]any{"namespace": ns, "name": name},
		"spec": map[string]any{"config": fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"type":"godwit","subnet":%q}`, name, subnet)},
	}}
	if err := cluster.api.Create(t.Context(), u); err != nil {
		t.Fatal(err)
	}
}

// networkStatus is what Multus says of a pod's interfaces.
type networkStatus struct {
	Name, Interface, Mac string
	IPs                  []netip.Addr
	Default              bool
}

func statusOf(p *corev1.Pod) (out []networkStatus, _ error) {
	text := p.Annotations["k8s.v1.cni.cncf.io/network-status"]
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, fmt.Errorf("pod %s: network-status %q: %w", p.Name, text, err)
	}
	return out, nil
}

// Pods with a second interface on a Subnet of its own reach each other by both, on two nodes, with the addresses that network-status lists; default routes stay with
// the first. A Subnet that is not for the namespace is refused with a word. What they had is gone with them.
func TestLifecycleSecondNetwork(t *testing.T) {
	withMultus(t)
	secondSubnet(t, "second-blue", "blue", map[string]string{lab.IPv4: "10.77.0.0/24", lab.IPv6: "fd00:77::/64"})
	secondSubnet(t, "second-green", "blue", map[string]string{lab.IPv4: "10.76.0.0/24", lab.IPv6: "fd00:76::/64"})
	secondSubnet(t, "second-red", "red", map[string]string{lab.IPv4: "10.79.0.0/24", lab.IPv6: "fd00:79::/64"})
	ns := namespace(t, map[string]string{"second": "blue"})
	definition(t, ns, "blue", "second-blue")
	definition(t, ns, "green", "second-green")
	definition(t, ns, "red", "second-red")
	var pods []*corev1.Pod
	for i, networks := range []string{"blue,green", `[{"name":"blue","interface":"b0"},{"name":"green"}]`} {
		p := server(ns, fmt.Sprintf("two-%d", i), fmt.Sprintf("node%d", i+1))
		p.Annotations = map[string]string{nad.Annotation: networks}
		pods = append(pods, p)
	}
	closed := server(ns, "closed", "node1")
	closed.Annotations = map[string]string{nad.Annotation: "red"}
	create(t, append(pods, closed)...)
	first := ready(t, ns, len(pods))

	var ends []reach.Pod
	for _, p := range pods {
		if err := cluster.api.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
			t.Fatal(err)
		}
		id, err := v1alpha1.ParseIdentity(p.Annotations[v1alpha1.IdentityAnnotation])
		if err != nil {
			t.Fatal(err)
		}
		says, err := statusOf(p)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %+v", p.Name, says)
		if len(says) != 1+len(id.NICs) || !says[0].Default || says[0].Interface != "eth0" || !slices.Equal(says[0].IPs, first[p.Name].IPs) {
			t.Fatalf("network-status of %s is %+v, want eth0 with %v and %d others", p.Name, says, first[p.Name].IPs, len(id.NICs))
		}
		all := first[p.Name]
		for i, nic := range id.NICs {
			var ips []netip.Addr
			for _, ip := range nic.IPs {
				ips = append(ips, ip.Addr())
			}
			if got := says[i+1]; got.Name != nic.Network || got.Interface != nic.Interface || got.Mac != nic.MAC.String() || got.Default || !slices.Equal(got.IPs, ips) {
				t.Errorf("network-status of %s says %+v, want %+v", p.Name, got, nic)
			}
			all.IPs = append(slices.Clone(all.IPs), ips...)
		}
		ends = append(ends, all)
		secondRoutes(t, p)
	}
	m := reachEachOther(t, ends...)
	t.Logf("%d ways asked", m.Asked())

	eventually(t, settleTimeout, func(ctx context.Context) error {
		out, err := kubectl(ctx, "-n", ns, "get", "events", "--field-selector", "reason=SubnetNotAllowed,involvedObject.name=closed", "-o", "jsonpath={.items[*].note}{.items[*].message}")
		if err == nil && !strings.Contains(out, "second-red") {
			err = fmt.Errorf("a pod asks for a Subnet that is not for its namespace, and is told %q", out)
		}
		return err
	})
	if err := cluster.api.Get(t.Context(), client.ObjectKeyFromObject(closed), closed); err != nil || isReady(closed) {
		t.Errorf("the pod that may not be on its second network runs (%v)", err)
	}
	if err := cluster.api.Delete(t.Context(), closed); err != nil {
		t.Fatal(err)
	}
	consistent(t)
	secondGone(t, pods, ns)
}

// secondRoutes checks that a pod has its default routes through eth0 alone.
func secondRoutes(t *testing.T, p *corev1.Pod) {
	t.Helper()
	out, err := inPod(t.Context(), p.Namespace, p.Name, "cat", "/proc/net/route")
	if err != nil {
		t.Fatal(err)
	}
	defaults := 0
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "00000000" {
			if defaults++; f[0] != "eth0" {
				t.Errorf("pod %s has a default route by %s", p.Name, f[0])
			}
		}
	}
	if want := 1; cluster.IPFamily() != lab.IPv6 && defaults != want {
		t.Errorf("pod %s has %d default routes:\n%s", p.Name, defaults, out)
	}
}

// secondGone deletes the pods, and waits until nothing says anything of them any more.
func secondGone(t *testing.T, pods []*corev1.Pod, ns string) {
	t.Helper()
	for _, p := range pods {
		if err := cluster.api.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, func(ctx context.Context) error {
		var errs []error
		for _, p := range pods {
			rows, err := cluster.nb.PodPorts(ctx, ns, p.Name)
			if err == nil && len(rows) > 0 {
				err = fmt.Errorf("pod %s is gone, and has %d rows", p.Name, len(rows))
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	eventually(t, time.Minute, func(ctx context.Context) error {
		var s v1alpha1.Subnet
		err := cluster.api.Get(ctx, client.ObjectKey{Name: "second-blue"}, &s)
		if err == nil && s.Status.UsedIPs != 0 {
			err = fmt.Errorf("Subnet second-blue still has %d addresses in use", s.Status.UsedIPs)
		}
		return err
	})
	consistent(t)
}
