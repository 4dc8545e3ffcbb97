package controller

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/policy"
)

const oldIP, newIP = "10.244.0.5", "10.244.0.6"

// selecting knows a policy that lets VMs in that have a label, and nobody else.
func selecting() *policies {
	p := &policies{index: policy.New(policy.Config{}), vms: map[ident.PortName]types.UID{}}
	p.tell(func(x *policy.Index) {
		x.SetNamespace("ns", nil)
		x.SetPolicy(&networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"},
			Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "front"}}}},
			}}},
		})
	})
	return p
}

// admitted are the addresses of those that a policy lets in.
func (p *policies) admitted() []string {
	var out []string
	for _, set := range p.Rows().Sets {
		out = append(out, set.Addresses...)
	}
	slices.Sort(out)
	return out
}

func policyPort(uid, vm, ip string) *v1alpha1.Port {
	return &v1alpha1.Port{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "port", UID: types.UID(uid)},
		Spec:       v1alpha1.PortSpec{Target: v1alpha1.PortTarget{Name: vm, Network: podNetwork}},
		Status:     v1alpha1.PortStatus{IPs: []string{ip}},
	}
}

func policyVMI(app string) *kubevirtv1.VirtualMachineInstance {
	return &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", Labels: map[string]string{"app": app}}}
}

// Whoever merely sees a Port tells of its VM as long as the interface is the Port's, and brings nothing back that its own reconciler has let go: the addresses are somebody else's then.
func TestPolicyVMOfPort(t *testing.T) {
	was, moved, next := policyPort("1", "vm", oldIP), policyPort("1", "other", oldIP), policyPort("2", "vm", newIP)
	front, back := policyVMI("front"), policyVMI("back")
	set := func(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance) func(*policies) {
		return func(p *policies) { p.setVM(port, vmi, parseAddrs(port.Status.IPs)) }
	}
	follow := func(port *v1alpha1.Port, vmi *kubevirtv1.VirtualMachineInstance) func(*policies) {
		return func(p *policies) { p.followVM(port, vmi, parseAddrs(port.Status.IPs)) }
	}
	forget := func(port *v1alpha1.Port) func(*policies) {
		return func(p *policies) { p.forgetVM(rowName(port), port.UID) }
	}
	for _, c := range []struct {
		name  string
		steps []func(*policies)
		want  []string
	}{
		{"a VM that starts after its Port was made", []func(*policies){set(was, nil), follow(was, front)}, []string{oldIP}},
		{"labels of a VM that runs", []func(*policies){set(was, back), follow(was, front)}, []string{oldIP}},
		{"and the other way", []func(*policies){set(was, front), follow(was, back)}, nil},
		{"a VM that is gone", []func(*policies){set(was, front), follow(was, nil)}, nil},
		{"and starts again", []func(*policies){set(was, front), follow(was, nil), follow(was, front)}, []string{oldIP}},
		{"a Port that is gone", []func(*policies){set(was, front), forget(was)}, nil},
		{"a Port that is gone, told by who read it before", []func(*policies){set(was, front), forget(was), follow(was, front)}, nil},
		{"a Port made anew under the same name", []func(*policies){set(was, front), forget(was), set(next, front), follow(was, front)}, []string{newIP}},
		{"a Port made anew before the former is forgotten", []func(*policies){set(was, front), set(next, front), forget(was)}, []string{newIP}},
		{"a Port made anew, whose VM has not started", []func(*policies){set(was, front), forget(was), set(next, nil), follow(was, front)}, nil},
		{"a Port that was given to another VM", []func(*policies){set(was, front), forget(was), set(moved, nil), follow(was, front)}, nil},
		{"and back", []func(*policies){set(was, front), forget(was), set(moved, nil), forget(moved), set(was, nil), follow(moved, front), follow(was, front)}, []string{oldIP}},
		{"a Port of which nobody has told", []func(*policies){follow(was, front)}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := selecting()
			for _, step := range c.steps {
				step(p)
			}
			if got := p.admitted(); !slices.Equal(got, c.want) {
				t.Errorf("admitted are %v, want %v", got, c.want)
			}
		})
	}
}

func TestPolicyVMsOfPort(t *testing.T) {
	p := selecting()
	for _, port := range []*v1alpha1.Port{policyPort("1", "vm", oldIP), policyPort("1", "other", oldIP), policyPort("2", "next", newIP)} {
		p.setVM(port, nil, []netip.Addr{netip.MustParseAddr(port.Status.IPs[0])})
	}
	if got, want := p.vmsOf("1"), []ident.PortName{ident.VMPort("ns", "other", podNetwork), ident.VMPort("ns", "vm", podNetwork)}; !slices.Equal(got, want) {
		t.Errorf("the Port has %v, want %v", got, want)
	}
}

// A VM's rows are not written before policies know of the VM: a launcher would attach without them. Where there is no row, or no VM, nobody waits.
func TestPolicyVMIsToldFirst(t *testing.T) {
	port := policyPort("1", "vm", oldIP)
	row := map[string]*nbdb.LogicalSwitchPort{podNetwork: {Name: string(rowName(port))}}
	for _, c := range []struct {
		name  string
		known types.UID
		vmi   *kubevirtv1.VirtualMachineInstance
		rows  map[string]*nbdb.LogicalSwitchPort
		told  bool
		want  []string
	}{
		{"its Port's", "1", policyVMI("front"), row, true, []string{oldIP}},
		{"not told yet", "", policyVMI("front"), row, false, nil},
		{"another Port's", "2", policyVMI("front"), row, false, nil},
		{"without a row", "2", policyVMI("front"), nil, true, nil},
		{"without a VM", "2", nil, row, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, q := selecting(), &queues{}
			if c.known != "" {
				p.vms[rowName(port)] = c.known
			}
			asked := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
			defer asked.ShutDown()
			if err := q.ports.Start(t.Context(), asked); err != nil {
				t.Fatal(err)
			}
			r := &vmReconciler{policies: p, queues: q, now: time.Now}
			told := r.tellPolicies(observed{vmi: c.vmi, ports: map[string]*v1alpha1.Port{podNetwork: port}, rows: c.rows})
			if told != c.told || !slices.Equal(p.admitted(), c.want) {
				t.Errorf("rows may be written: %v, admitted are %v, want %v and %v", told, p.admitted(), c.told, c.want)
			}
			if (asked.Len() == 0) != told {
				t.Errorf("%d Ports are asked for", asked.Len())
			}
		})
	}
}
