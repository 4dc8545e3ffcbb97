package controller

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func TestWishes(t *testing.T) {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	vmi.Annotations = map[string]string{v1alpha1.SubnetAnnotation: "blue", v1alpha1.IPsAnnotation: " 10.9.0.7, fd00:9::7,", v1alpha1.MACAnnotation: "02:AA:00:00:00:07"}
	got := newPort(vmi, podNetwork).Spec
	want := v1alpha1.PortSpec{Target: got.Target, Subnet: "blue", IPs: []string{"10.9.0.7", "fd00:9::7"}, MAC: "02:AA:00:00:00:07"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the Port (-want +got):\n%s", diff)
	}
	if got := newPort(vmi, "second").Spec; got.Subnet != "" || got.IPs != nil || got.MAC != "" {
		t.Errorf("the Port on another network: %+v", got)
	}
	w := wishesFor(vmi, podNetwork)
	for name, c := range map[string]struct {
		status v1alpha1.PortStatus
		unmet  []string
	}{
		"as asked":        {v1alpha1.PortStatus{Subnet: "blue", IPs: []string{"10.9.0.7", "fd00:9::7"}, MAC: "02:aa:00:00:00:07"}, nil},
		"another Subnet":  {v1alpha1.PortStatus{Subnet: "red", IPs: []string{"10.9.0.7", "fd00:9::7"}, MAC: "02:aa:00:00:00:07"}, []string{v1alpha1.SubnetAnnotation}},
		"another address": {v1alpha1.PortStatus{Subnet: "blue", IPs: []string{"10.9.0.7", "fd00:9::8"}, MAC: "02:aa:00:00:00:07"}, []string{v1alpha1.IPsAnnotation}},
		"all of it":       {v1alpha1.PortStatus{}, []string{v1alpha1.SubnetAnnotation, v1alpha1.IPsAnnotation, v1alpha1.MACAnnotation}},
	} {
		if diff := cmp.Diff(c.unmet, w.unmet(c.status)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got := wishesFor(&kubevirtv1.VirtualMachineInstance{}, podNetwork).unmet(v1alpha1.PortStatus{Subnet: "blue", IPs: []string{"10.9.0.7"}}); got != nil {
		t.Errorf("who asks for nothing misses %v", got)
	}
}
