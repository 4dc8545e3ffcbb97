package integration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// newSubnet creates a Subnet and waits for the reason of its condition.
func (e *env) newSubnet(t *testing.T, s *v1alpha1.Subnet, reason string) {
	t.Helper()
	if err := e.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	e.ready(t, s.Name, reason)
}

// subnetFor is a Subnet of one range for namespaces labelled with selected.
func subnetFor(name, cidr, selected string, exclude ...string) *v1alpha1.Subnet {
	return subnet(name, v1alpha1.SubnetSpec{CIDRs: []string{cidr}, NamespaceSelector: selects(selected), ExcludeIPs: exclude})
}

// exclude changes what a Subnet gives out, and waits until the controller has taken it in.
func (e *env) exclude(t *testing.T, name string, ips ...string) {
	t.Helper()
	s := e.ready(t, name, "InNetwork")
	before := s.DeepCopy()
	s.Spec.ExcludeIPs = ips
	if err := e.api.Patch(t.Context(), s, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(s), s); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(s.Status.Conditions, "Ready"); c.ObservedGeneration != s.Generation || c.Reason != "InNetwork" {
			return fmt.Errorf("Subnet %s of generation %d has condition %+v, want InNetwork", name, s.Generation, c)
		}
		return nil
	})
}

// waits creates a pod and waits for the event that says why it has no address.
func (e *env) waits(t *testing.T, pod types.NamespacedName, reason string) {
	t.Helper()
	e.pod(t, pod, "n1")
	eventually(t, func() error { return e.eventOf(t, pod, reason) })
}

func (e *env) inSubnet(t *testing.T, pod types.NamespacedName, want string) {
	t.Helper()
	if id, _ := e.served(t, pod); id.Subnet != want {
		t.Errorf("pod %s is in Subnet %s, want %s", pod, id.Subnet, want)
	}
}

func (e *env) gone(t *testing.T, s *v1alpha1.Subnet) {
	t.Helper()
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(s), &v1alpha1.Subnet{}); !apierrors.IsNotFound(err) {
			return errors.Join(fmt.Errorf("Subnet %s is still there", s.Name), err)
		}
		return nil
	})
}

// anotherSubnet: what waits for an address in a Subnet that is full gets one of another that comes.
func anotherSubnet(t *testing.T, e *env) {
	e.newSubnet(t, subnetFor("tight", "10.80.0.0/30", "tight"), "InNetwork")
	e.namespace(t, "tight", map[string]string{"subnet": "tight"})
	e.pod(t, key("tight", "a"), "n1")
	e.inSubnet(t, key("tight", "a"), "tight")
	e.waits(t, key("tight", "b"), "SubnetFull")
	e.newSubnet(t, subnetFor("roomy", "10.80.1.0/24", "tight"), "InNetwork")
	e.inSubnet(t, key("tight", "b"), "roomy")
}

// relabelled: a pod that waits is looked at again when its namespace is another Subnet's.
func relabelled(t *testing.T, e *env) {
	e.newSubnet(t, subnetFor("small", "10.81.0.0/30", "small"), "InNetwork")
	e.namespace(t, "label", map[string]string{"subnet": "small"})
	e.pod(t, key("label", "a"), "n1")
	e.inSubnet(t, key("label", "a"), "small")
	e.waits(t, key("label", "b"), "SubnetFull")
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "label"}}
	if err := e.api.Patch(t.Context(), ns, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"subnet":null}}}`))); err != nil {
		t.Fatal(err)
	}
	e.inSubnet(t, key("label", "b"), "default")
}

// opened: a pod that asks for a Subnet that is not for its namespace gets an address there when the Subnet is for it.
func opened(t *testing.T, e *env) {
	e.newSubnet(t, subnetFor("tenants", "10.89.0.0/24", "nobody"), "InNetwork")
	e.namespace(t, "tenant", map[string]string{"subnet": "tenant"})
	p := newPod(key("tenant", "a"), "n1")
	p.Annotations = map[string]string{v1alpha1.SubnetAnnotation: "tenants"}
	e.create(t, p)
	eventually(t, func() error { return e.eventOf(t, key("tenant", "a"), "SubnetNotAllowed") })
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"namespaceSelector":{"matchLabels":{"subnet":"tenant"}}}}`))
	if err := e.api.Patch(t.Context(), subnet("tenants", v1alpha1.SubnetSpec{}), patch); err != nil {
		t.Fatal(err)
	}
	e.inSubnet(t, key("tenant", "a"), "tenants")
}

// excluded: who has an address that is excluded keeps it; what is not excluded any more is given to those who wait.
func excluded(t *testing.T, e *env) {
	e.newSubnet(t, subnetFor("barred", "10.82.0.0/29", "barred", "10.82.0.3-10.82.0.6"), "InNetwork")
	e.namespace(t, "barred", map[string]string{"subnet": "barred"})
	a, b := key("barred", "a"), key("barred", "b")
	e.pod(t, a, "n1")
	had, _ := e.served(t, a)
	e.waits(t, b, "SubnetFull")
	e.exclude(t, "barred", "10.82.0.2", "10.82.0.4-10.82.0.6")
	if got, _ := e.served(t, b); got.IPs[0].String() != "10.82.0.3/29" {
		t.Errorf("b has %s, want the address that is not excluded any more", got.IPs[0])
	}
	if now, _ := e.served(t, a); now.Text() != had.Text() {
		t.Errorf("a was %s, is %s", had.Text(), now.Text())
	}
}

// refusedSubnets come into the network when what was in their way has gone, and make nobody wait who could be elsewhere.
func refusedSubnets(t *testing.T, e *env) {
	older, younger := subnetFor("over-1", "10.83.0.0/24", "none"), subnetFor("over-2", "10.83.0.0/25", "over")
	e.newSubnet(t, older, "InNetwork")
	e.newSubnet(t, younger, "Overlaps")
	e.namespace(t, "over", map[string]string{"subnet": "over"})
	e.waits(t, key("over", "a"), "SubnetNotReady")
	if err := e.api.Delete(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "over-2", "InNetwork")
	e.inSubnet(t, key("over", "a"), "over-2")

	gone := subnetFor("over-3", "10.83.0.0/26", "lost")
	e.newSubnet(t, gone, "Overlaps")
	e.namespace(t, "lost", map[string]string{"subnet": "lost"})
	e.waits(t, key("lost", "a"), "SubnetNotReady")
	if err := e.api.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	e.inSubnet(t, key("lost", "a"), "default")

	e.node(t, "inside")
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "inside"}}
	at := client.RawPatch(types.MergePatchType, []byte(`{"status":{"addresses":[{"type":"InternalIP","address":"10.84.0.7"}]}}`))
	if err := e.api.Status().Patch(t.Context(), node, at); err != nil {
		t.Fatal(err)
	}
	e.newSubnet(t, subnetFor("nodes", "10.84.0.0/24", "none"), "Overlaps")
	if err := e.api.Delete(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "nodes", "InNetwork")
}

// subnetsRestart: a controller that begins finds everybody at the addresses that they have, whatever has become of their Subnets.
func subnetsRestart(t *testing.T, e *env) {
	e.stop()
	e.start(t) // the one before ended with its scenario
	leaving := subnetFor("leaving", "10.85.0.0/24", "leaving")
	e.newSubnet(t, leaving, "InNetwork")
	e.newSubnet(t, subnetFor("fenced", "10.86.0.0/24", "fenced"), "InNetwork")
	before := map[types.NamespacedName]v1alpha1.Identity{}
	rows := map[types.NamespacedName]*nbdb.LogicalSwitchPort{}
	stays := []types.NamespacedName{key("leaving", "p"), key("fenced", "p")}
	for _, k := range stays {
		e.namespace(t, k.Namespace, map[string]string{"subnet": k.Namespace})
		e.pod(t, k, "n1")
		before[k], rows[k] = e.served(t, k)
	}
	e.namespace(t, "succeed", nil)
	successor := key("succeed", "web-0")
	e.pod(t, successor, "n1")
	_, old := e.served(t, successor)
	if err := e.api.Delete(t.Context(), leaving); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "leaving", "Terminating")
	e.exclude(t, "fenced", before[key("fenced", "p")].IPs[0].Addr().String())
	e.stop()
	e.deletePod(t, successor)
	e.pod(t, successor, "") // like one of a StatefulSet, that no node has room for
	e.start(t)
	e.pod(t, key("fenced", "next"), "n1")
	e.served(t, key("fenced", "next")) // every Subnet has been seen to by now
	eventually(t, func() error { _, err := e.identity(t.Context(), successor); return err })
	eventually(t, func() error {
		if row, err := e.port(t.Context(), successor); err == nil {
			return fmt.Errorf("the row of the pod's predecessor is still there with %v, was %v", row.Addresses, old.Addresses)
		}
		return nil
	})
	for _, k := range stays {
		id, row := e.served(t, k)
		if id.Text() != before[k].Text() || row.UUID != rows[k].UUID || !slices.Equal(row.Addresses, rows[k].Addresses) {
			t.Errorf("pod %s was %s at row %s, is %s at row %s", k, before[k].Text(), rows[k].UUID, id.Text(), row.UUID)
		}
	}
	e.ready(t, "leaving", "Terminating")
	if ls, err := e.nb.Switch(t.Context(), ident.SubnetSwitch("leaving")); ls == nil || err != nil {
		t.Errorf("the switch of Subnet leaving, which has a pod: %v, %v", ls, err)
	}
	e.deletePod(t, key("leaving", "p"))
	e.gone(t, leaving)
}

// gatewaysStay: the API server refuses another gateway, also one instead of none.
func gatewaysStay(t *testing.T, e *env) {
	with := subnet("gw", v1alpha1.SubnetSpec{CIDRs: []string{"10.87.0.0/24"}, Gateways: []string{"10.87.0.9"}, NamespaceSelector: selects("none")})
	e.newSubnet(t, with, "InNetwork")
	e.newSubnet(t, subnetFor("gw-none", "10.88.0.0/24", "none"), "InNetwork")
	for name, gateways := range map[string]string{"gw": `["10.87.0.1"]`, "gw-none": `["10.88.0.1"]`} {
		patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"gateways":`+gateways+`}}`))
		err := e.api.Patch(t.Context(), subnet(name, v1alpha1.SubnetSpec{}), patch)
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "gateways cannot be changed") {
			t.Errorf("changing the gateways of %s: %v", name, err)
		}
	}
}

// oneMAC: of Ports that ask for one MAC at the same moment one gets it, and another when that one gives it up.
func oneMAC(t *testing.T, e *env) {
	e.namespace(t, "macs", nil)
	const mac = "02:00:00:00:90:01"
	names := []string{"a", "b", "c", "d"}
	var g errgroup.Group
	for _, name := range names {
		g.Go(func() error {
			return e.api.Create(t.Context(), newPort("macs", name, name, v1alpha1.PortSpec{MAC: mac}))
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	owner := e.ownerOfMAC(t, mac, names)
	port := e.vmPort(t, key("macs", owner), v1alpha1.PortReserved)
	before := port.DeepCopy()
	port.Spec.MAC = "02:00:00:00:90:02"
	if err := e.api.Patch(t.Context(), port, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	others := slices.DeleteFunc(names, func(n string) bool { return n == owner })
	e.ownerOfMAC(t, mac, others)
	e.vmPort(t, key("macs", owner), v1alpha1.PortReserved)
}

// ownerOfMAC waits until each Port has been seen to, and is the one of them that has the MAC. None of the others has a row.
func (e *env) ownerOfMAC(t *testing.T, mac string, names []string) string {
	t.Helper()
	var owners []string
	eventually(t, func() error {
		owners = nil
		for _, name := range names {
			var port v1alpha1.Port
			if err := e.api.Get(t.Context(), key("macs", name), &port); err != nil {
				return err
			}
			c := meta.FindStatusCondition(port.Status.Conditions, "Ready")
			switch {
			case c == nil:
				return fmt.Errorf("Port %s has not been seen to", name)
			case port.Status.MAC == mac:
				owners = append(owners, name)
			case c.Reason != "MACTaken" || len(port.Status.IPs) > 0:
				return fmt.Errorf("Port %s has condition %+v and addresses %v, want MACTaken and none", name, c, port.Status.IPs)
			}
		}
		if len(owners) == 0 {
			return fmt.Errorf("none of Ports %v has MAC %s", names, mac)
		}
		return nil
	})
	if len(owners) != 1 {
		t.Fatalf("Ports %v all have MAC %s", owners, mac)
	}
	for _, name := range names {
		if row, err := e.row(t, key("macs", name)); err == nil && name != owners[0] {
			t.Errorf("Port %s, which has no MAC, has row %v", name, row)
		}
	}
	return owners[0]
}

// northboundLost: all rows are made again when the database has lost them, without a restart of the controller.
func northboundLost(t *testing.T, e *env) {
	e.stop()
	e.start(t)
	e.namespace(t, "lostdb", nil)
	pod, vm := key("lostdb", "p"), key("lostdb", "vm")
	e.pod(t, pod, "n1")
	id, row := e.served(t, pod)
	vmi := e.vmi(t, vm)
	e.launcher(t, vmi, "launcher", "n2", nil)
	had := e.asks(t, vm, "n2", "")
	e.central.EmptyNB(t)
	eventually(t, func() error {
		after, err := e.port(t.Context(), pod)
		if err == nil && after.UUID == row.UUID {
			err = errors.New("the row is the one that was lost")
		}
		return err
	})
	if now, after := e.served(t, pod); now.Text() != id.Text() || !slices.Equal(after.Addresses, row.Addresses) {
		t.Errorf("pod was %s with %v, is %s with %v", id.Text(), row.Addresses, now.Text(), after.Addresses)
	}
	eventually(t, func() error {
		after, err := e.row(t, vm)
		if err == nil && (after.UUID == had.UUID || after.Options["requested-chassis"] != "n2" || !slices.Equal(after.Addresses, had.Addresses)) {
			err = fmt.Errorf("row of the VM was %+v, is %+v", had, after)
		}
		return err
	})
	for _, name := range []ident.SwitchName{ident.SubnetSwitch("default"), ident.JoinSwitch(ident.DefaultNetwork)} {
		if ls, err := e.nb.Switch(t.Context(), name); ls == nil || err != nil {
			t.Errorf("switch %s: %v, %v", name, ls, err)
		}
	}
	eventually(t, func() error {
		port, err := e.nb.Port(t.Context(), ident.NodePort("n1"))
		if err == nil && port == nil {
			err = errors.New("node n1 has no port")
		}
		return err
	})
}
