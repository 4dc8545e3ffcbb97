package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// What a VM's template asks for in annotations its Port has, or the VM is told why not, and has no address rather than another.
func TestLifecycleAnnotations(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	e.namespace(t, "shop", map[string]string{"subnet": "shop"})
	e.create(t, subnet("blue", v1alpha1.SubnetSpec{CIDRs: []string{"10.77.0.0/24"}, NamespaceSelector: selectsAny("shop", "both")}),
		subnet("red", v1alpha1.SubnetSpec{CIDRs: []string{"10.79.0.0/24"}, NamespaceSelector: selectsAny("others", "both")}))

	asks := func(name string, annotations map[string]string) *kubevirtv1.VirtualMachineInstance {
		t.Helper()
		vmi := e.vmi(t, key("shop", name), func(vmi *kubevirtv1.VirtualMachineInstance) {
			vmi.Annotations, vmi.Status.Phase = annotations, kubevirtv1.Scheduling
		})
		e.launcher(t, vmi, name+"-1", "n1", nil)
		return vmi
	}
	ips, mac, blue := v1alpha1.IPsAnnotation, v1alpha1.MACAnnotation, v1alpha1.SubnetAnnotation

	first := asks("first", map[string]string{blue: "blue", ips: "10.77.0.9", mac: "02:00:00:00:77:09"})
	eventually(t, func() error {
		var port v1alpha1.Port
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(first), &port); err != nil {
			return err
		}
		if s := port.Status; s.Subnet != "blue" || !slices.Equal(s.IPs, []string{"10.77.0.9"}) || s.MAC != "02:00:00:00:77:09" {
			return fmt.Errorf("Port %s has %+v", first.Name, s)
		}
		return nil
	})
	for name, c := range map[string]struct {
		annotations map[string]string
		reason      string
		port        bool // there is one, which is not ready
	}{
		"taken":        {map[string]string{blue: "blue", ips: "10.77.0.9"}, "AddressTaken", true},
		"out-of-range": {map[string]string{blue: "blue", ips: "10.78.0.9"}, "AddressOutOfRange", true},
		"mac-taken":    {map[string]string{mac: "02:00:00:00:77:09"}, "MACTaken", true},
		"nowhere":      {map[string]string{blue: "green"}, "SubnetNotAllowed", true},
		"of-others":    {map[string]string{blue: "red"}, "SubnetNotAllowed", true},
		"default":      {map[string]string{blue: controller.DefaultSubnet}, "SubnetNotAllowed", true},
		"nonsense":     {map[string]string{ips: "ten"}, "PortRefused", false},
		"recycled":     {map[string]string{v1alpha1.ReclaimAnnotation: "Recycle"}, "PortRefused", false},
		"prefix":       {map[string]string{ips: "10.77.0.10/24"}, "PortRefused", false},
		"multicast":    {map[string]string{mac: "01:00:5e:00:00:01"}, "PortRefused", false},
	} {
		vm := asks(name, c.annotations)
		e.told(t, vm, c.reason)
		var port v1alpha1.Port
		err := e.api.Get(t.Context(), client.ObjectKeyFromObject(vm), &port)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		if got := err == nil; got != c.port {
			t.Errorf("%s: there is a Port: %v, want %v", name, got, c.port)
		}
		if err == nil && (meta.IsStatusConditionTrue(port.Status.Conditions, v1alpha1.ConditionReady) || len(port.Status.IPs) > 0) {
			t.Errorf("%s: the Port has %+v, want nothing", name, port.Status)
		}
	}

	t.Run("reclaim", func(t *testing.T) {
		e.reclaims(t, asks("reclaimed", map[string]string{v1alpha1.ReclaimAnnotation: "Retain"}))
	})

	reserved := &v1alpha1.Port{}
	reserved.Namespace, reserved.Name = "shop", "kept"
	reserved.Spec.Target = v1alpha1.PortTarget{Kind: v1alpha1.KindVirtualMachine, Name: "kept"}
	e.create(t, reserved)
	e.vmPort(t, key("shop", "kept"), v1alpha1.PortReserved)
	e.told(t, asks("kept", map[string]string{ips: "10.244.0.200"}), "AnnotationIgnored")
}

// reclaims: a Port has the VM for an owner, with whom it goes, as its reclaimPolicy says, whenever that is changed.
func (e *env) reclaims(t *testing.T, vmi *kubevirtv1.VirtualMachineInstance) {
	var port v1alpha1.Port
	owners := func(want int) {
		t.Helper()
		eventually(t, func() error {
			if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(vmi), &port); err != nil {
				return err
			}
			if len(port.OwnerReferences) != want || len(port.Status.IPs) == 0 || want == 1 && port.OwnerReferences[0].UID != vmi.UID {
				return fmt.Errorf("with reclaimPolicy %q the Port has owners %+v and addresses %v, want %d owners", port.Spec.ReclaimPolicy, port.OwnerReferences, port.Status.IPs, want)
			}
			return nil
		})
	}
	owners(0)
	has := port.Status.IPs
	for _, step := range []struct {
		policy v1alpha1.ReclaimPolicy
		owners int
	}{{v1alpha1.ReclaimDelete, 1}, {"", 1}, {v1alpha1.ReclaimRetain, 0}, {"", 0}} {
		before := port.DeepCopy()
		port.Spec.ReclaimPolicy = step.policy
		if err := e.api.Patch(t.Context(), &port, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		owners(step.owners)
	}
	// Another VM of the name has the Port of the one that is gone.
	if err := e.api.Delete(t.Context(), vmi, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	e.vmPort(t, client.ObjectKeyFromObject(vmi), v1alpha1.PortReserved)
	next := e.vmi(t, client.ObjectKeyFromObject(vmi))
	e.launcher(t, next, vmi.Name+"-2", "n1", nil)
	e.asks(t, client.ObjectKeyFromObject(vmi), "n1", "")
	if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(vmi), &port); err != nil || !slices.Equal(port.Status.IPs, has) {
		t.Errorf("the next VM has %v (%v), want %v", port.Status.IPs, err, has)
	}
}

// A pod has the address, the MAC and the Subnet that it asks for, or is told why not; it gets them when they are free, or when it is corrected. Who comes after the controller knows it.
func TestLifecyclePodAnnotations(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	e.node(t, "n1")
	e.central.Chassis(t, "n1")
	e.defaultSubnet(t)
	e.namespace(t, "shop", map[string]string{"subnet": "shop"})
	e.create(t, subnet("blue", v1alpha1.SubnetSpec{CIDRs: []string{"10.77.0.0/24", "fd00:77::/64"}, NamespaceSelector: selectsAny("shop", "both")}),
		subnet("red", v1alpha1.SubnetSpec{CIDRs: []string{"10.79.0.0/24"}, NamespaceSelector: selectsAny("others", "both")}))
	ips, mac, blue := v1alpha1.IPsAnnotation, v1alpha1.MACAnnotation, v1alpha1.SubnetAnnotation
	pod := func(name string, annotations map[string]string) *corev1.Pod {
		p := newPod(key("shop", name), "n1")
		p.Annotations = annotations
		e.create(t, p)
		return p
	}
	has := func(p *corev1.Pod, subnet, ip, mac string) {
		t.Helper()
		id, _ := e.served(t, client.ObjectKeyFromObject(p))
		if id.Subnet != subnet || !slices.ContainsFunc(id.IPs, func(q netip.Prefix) bool { return q.Addr().String() == ip }) || mac != "" && id.MAC.String() != mac {
			t.Errorf("pod %s has %+v, want Subnet %s, address %s and MAC %q", p.Name, id, subnet, ip, mac)
		}
		row, err := e.nb.Port(t.Context(), ident.PodPort(p.Namespace, p.Name, ident.DefaultNetwork))
		if err != nil || row == nil || !strings.HasPrefix(row.Addresses[0], id.MAC.String()+" ") {
			t.Errorf("the row of pod %s is %+v (%v), want MAC %s", p.Name, row, err, id.MAC)
		}
	}
	first := pod("first", map[string]string{blue: "blue", ips: "10.77.0.9,fd00:77::9", mac: "02:00:00:00:77:09"})
	has(first, "blue", "fd00:77::9", "02:00:00:00:77:09")

	second := pod("second", map[string]string{blue: "blue", ips: "10.77.0.9", mac: "02:00:00:00:77:0A"})
	e.told(t, second, "AddressTaken")
	third := pod("third", map[string]string{mac: "02:00:00:00:77:09"})
	e.told(t, third, "MACTaken")
	reserved := ident.MAC(netip.MustParseAddr("10.77.0.200")).String()
	for name, c := range map[string]struct {
		annotations map[string]string
		reason      string
	}{
		"out-of-range": {map[string]string{ips: "192.0.2.9"}, "AddressOutOfRange"},
		"nowhere":      {map[string]string{blue: "green"}, "SubnetNotAllowed"},
		"reserved":     {map[string]string{mac: reserved}, "MACReserved"},
		"two":          {map[string]string{ips: "10.77.0.10,10.77.0.11"}, v1alpha1.ReasonInvalid},
		"short":        {map[string]string{mac: "02:00"}, v1alpha1.ReasonInvalid},
		"multicast":    {map[string]string{mac: "01:00:5e:00:00:01"}, v1alpha1.ReasonInvalid},
		"zero":         {map[string]string{mac: "00:00:00:00:00:00"}, v1alpha1.ReasonInvalid},
	} {
		e.told(t, pod(name, c.annotations), c.reason)
	}
	wrong := pod("wrong", map[string]string{blue: "blue", ips: "ten"})
	e.told(t, wrong, v1alpha1.ReasonInvalid)
	correct := func(p *corev1.Pod, annotations map[string]string) {
		before := p.DeepCopy()
		p.Annotations = annotations
		if err := e.api.Patch(t.Context(), p, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	correct(wrong, map[string]string{blue: "blue", ips: "10.77.0.112", mac: reserved}) // it has the address from now on, and nobody knows
	e.told(t, wrong, "MACReserved")
	correct(wrong, map[string]string{blue: "blue", ips: "10.77.0.113"})
	has(wrong, "blue", "10.77.0.113", "")

	ofOthers := pod("of-others", map[string]string{blue: "red"})
	e.told(t, ofOthers, "SubnetNotAllowed")
	var ns corev1.Namespace
	if err := e.api.Get(t.Context(), client.ObjectKey{Name: "shop"}, &ns); err != nil {
		t.Fatal(err)
	}
	ns.Labels["subnet"] = "both"
	if err := e.api.Update(t.Context(), &ns); err != nil {
		t.Fatal(err)
	}
	has(ofOthers, "red", "10.79.0.2", "")

	e.stop()
	e.start(t)
	fourth := pod("fourth", map[string]string{mac: "02:00:00:00:77:09"})
	e.told(t, fourth, "MACTaken")
	has(first, "blue", "10.77.0.9", "02:00:00:00:77:09")
	if err := e.api.Delete(t.Context(), first, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	has(second, "blue", "10.77.0.9", "02:00:00:00:77:0a")
	eventually(t, func() error { // one of the two that wait for it
		for _, p := range []*corev1.Pod{third, fourth} {
			id, err := e.identity(t.Context(), client.ObjectKeyFromObject(p))
			if err == nil && id.MAC.String() == "02:00:00:00:77:09" {
				return nil
			}
		}
		return errors.New("a MAC is free, and those that wait for it do not get it")
	})
}

// told waits for an event of a pod or of a VM's instance.
func (e *env) told(t *testing.T, obj client.Object, reason string) {
	t.Helper()
	eventually(t, func() error {
		var list eventsv1.EventList
		if err := e.api.List(t.Context(), &list, client.InNamespace(obj.GetNamespace())); err != nil {
			return err
		}
		var said []string
		for _, ev := range list.Items {
			if ev.Regarding.UID == obj.GetUID() {
				if ev.Reason == reason {
					t.Logf("%s: %s", obj.GetName(), ev.Note)
					return nil
				}
				said = append(said, ev.Reason)
			}
		}
		return fmt.Errorf("%T %s has no event %s, but %s", obj, obj.GetName(), reason, strings.Join(said, " "))
	})
}

func selectsAny(values ...string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "subnet", Operator: metav1.LabelSelectorOpIn, Values: values}}}
}
