package kubectl

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/errand"
)

// ready is a VM of which nothing keeps from moving.
func ready() preflight {
	vmi := &kubevirtv1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web1", Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation: ""},
		},
		Status: kubevirtv1.VirtualMachineInstanceStatus{
			Phase: kubevirtv1.Running, NodeName: "node1",
			Conditions: []kubevirtv1.VirtualMachineInstanceCondition{{Type: kubevirtv1.VirtualMachineInstanceIsMigratable, Status: corev1.ConditionTrue}},
		},
	}
	vmi.Spec.Networks = []kubevirtv1.Network{{Name: "default", NetworkSource: kubevirtv1.NetworkSource{Pod: &kubevirtv1.PodNetwork{}}}}
	vmi.Spec.Domain.Devices.Interfaces = []kubevirtv1.Interface{{Name: "default", InterfaceBindingMethod: kubevirtv1.InterfaceBindingMethod{Bridge: &kubevirtv1.InterfaceBridge{}}}}
	port := v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Name: "web1"}, Status: v1alpha1.PortStatus{
		Phase: v1alpha1.PortAttached, Node: "node1", IPs: []string{"10.244.0.7"}, Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}},
	}}
	node := func(name string) corev1.Node {
		return corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{v1alpha1.MTUAnnotation: "1442"}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}
	}
	return preflight{
		vmi: vmi, ports: []v1alpha1.Port{port}, last: recorded(), nodes: []corev1.Node{node("node1"), node("node2"), node("node3")},
		agents: map[string]bool{"node1": true, "node2": true, "node3": true},
		echoes: map[string][]errand.Echo{"node2": {{Size: 1442, Microseconds: 412}}, "node3": {{Size: 1442, Microseconds: 1380}}},
	}
}

// TestJudge: each thing that can be wrong is found, named, and has a remedy; and nothing else changes.
func TestJudge(t *testing.T) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	for name, wrong := range map[string]func(*preflight){
		"ready": func(*preflight) {},
		"hopeless": func(p *preflight) {
			p.vmi.Status.Phase = kubevirtv1.Scheduling
			p.vmi.Status.Conditions[0].Status, p.vmi.Status.Conditions[0].Reason, p.vmi.Status.Conditions[0].Message = corev1.ConditionFalse, "DisksNotLiveMigratable", "disk data is not shared"
			delete(p.vmi.Annotations, kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation)
			p.ports[0].Status.Conditions[0].Status, p.ports[0].Status.Conditions[0].Reason, p.ports[0].Status.Conditions[0].Message = metav1.ConditionFalse, "SubnetFull", "no address is left"
			p.last.Status.Result = v1alpha1.MigrationRunning
			p.nodes[1].Spec.Unschedulable, p.agents["node3"] = true, false
		},
		"noticed": func(p *preflight) {
			p.vmi.Spec.Domain.Devices.Interfaces[0].InterfaceBindingMethod = kubevirtv1.InterfaceBindingMethod{Masquerade: &kubevirtv1.InterfaceMasquerade{}}
			p.nodes[1].Annotations[v1alpha1.MTUAnnotation] = "1342"
			p.nodes[2].Status.Conditions = nil
			p.services = []corev1.Service{
				{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, InternalTrafficPolicy: &local}},
				{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "db"}, InternalTrafficPolicy: &local}},
			}
			p.last.Status.Result, p.last.Status.Reason = v1alpha1.MigrationFailed, "TargetGone"
		},
		"nowhere": func(p *preflight) {
			p.vmi.Spec.NodeSelector = map[string]string{"zone": "a"}
			p.ports[0].Status.Node, p.last = "node3", nil
			p.vmi.Status.Conditions = nil
			p.vmi.Spec.Domain.Devices.Interfaces[0].InterfaceBindingMethod = kubevirtv1.InterfaceBindingMethod{SRIOV: &kubevirtv1.InterfaceSRIOV{}}
		},
		"unknown": func(p *preflight) { p.ports, p.last, p.unsent = nil, nil, errors.New("nobody may run programs there") },
		"tunnels": func(p *preflight) {
			p.nodes = append(p.nodes, *p.nodes[1].DeepCopy())
			p.nodes[3].Name, p.agents["node4"] = "node4", true
			p.echoes["node2"] = []errand.Echo{{Size: 1442, Error: "no answer within 1s"}, {Size: 1280, Microseconds: 300}}
			p.echoes["node3"] = []errand.Echo{{Size: 1442, Error: "no answer within 1s"}, {Size: 1280, Error: "no answer within 1s"}}
		},
		"not tried": func(p *preflight) { p.echoes = nil },
		"not ready": func(p *preflight) {
			p.nodes[1].Status.Conditions, p.nodes[2].Status.Conditions[0].Status = nil, corev1.ConditionUnknown
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := ready()
			wrong(&p)
			var b strings.Builder
			err := report(&b, p.judge())
			text := b.String()
			if err != nil {
				text += "error: " + err.Error() + "\n"
			}
			golden(t, "check-"+strings.ReplaceAll(name, " ", "-")+".txt", text)
			for _, v := range p.judge() {
				if (v.grade == fine) != (v.remedy == "") {
					t.Errorf("%s %q has the remedy %q", v.grade, v.finding, v.remedy)
				}
			}
		})
	}
}

func TestDrainPlan(t *testing.T) {
	strategies := map[string]kubevirtv1.EvictionStrategy{"none": kubevirtv1.EvictionStrategyNone, "possible": kubevirtv1.EvictionStrategyLiveMigrateIfPossible, "pinned": kubevirtv1.EvictionStrategyLiveMigrate, "web1": kubevirtv1.EvictionStrategyLiveMigrate, "external": kubevirtv1.EvictionStrategyExternal}
	p := plan{node: "node1", moves: []v1alpha1.PortMigration{*recorded()}}
	for _, name := range []string{"silent", "none", "possible", "pinned", "web1", "external"} {
		vmi := ready().vmi.DeepCopy()
		vmi.Name = name
		if s, ok := strategies[name]; ok {
			vmi.Spec.EvictionStrategy = &s
		}
		if name == "possible" || name == "pinned" {
			vmi.Status.Conditions = nil
		}
		p.vmis = append(p.vmis, *vmi)
	}
	for file, write := range map[string]plan{"drain.txt": p, "drain-easy.txt": {node: "node1", vmis: p.vmis[4:5], moves: p.moves}, "drain-empty.txt": {node: "node1"}} {
		var b strings.Builder
		err := write.write(&b)
		text := b.String()
		if err != nil {
			text += "error: " + err.Error() + "\n"
		}
		golden(t, file, text)
	}
}

// The agent on the VM's node is asked for the nodes that can take it, by their addresses on the join network, with packets as long as the VM's.
func TestProbe(t *testing.T) {
	p := ready()
	for i, text := range []string{"100.64.0.2/16", "100.64.0.3/16", ""} {
		if text != "" {
			p.nodes[i].Annotations[v1alpha1.JoinAnnotation] = `{"ips":["` + text + `"],"mac":"0a:67:64:40:00:02","gateways":["100.64.0.1"]}`
		}
	}
	said := answers{"agent-node1/agent: godwit-agent echo --size 1442 -- 100.64.0.3": {stdout: `[{"to":"100.64.0.3","size":1442,"error":"no answer within 1s"},{"to":"100.64.0.3","size":1280,"microseconds":77}]`}}
	c := clusterOf(t, said, agentPod("node1"), agentPod("node2"))
	p.echoes = nil
	c.probe(t.Context(), &p)
	want := map[string][]errand.Echo{"node2": {{To: netip.MustParseAddr("100.64.0.3"), Size: 1442, Error: "no answer within 1s"}, {To: netip.MustParseAddr("100.64.0.3"), Size: 1280, Microseconds: 77}}}
	if diff := cmp.Diff(want, p.echoes, cmpopts.EquateComparable(netip.Addr{})); diff != "" || p.unsent != nil {
		t.Errorf("%v (-want +got):\n%s", p.unsent, diff)
	}
	for line := range said {
		said[line] = answer{stderr: `Error: unknown command "echo" for "godwit-agent"`, code: 1}
	}
	if c.probe(t.Context(), &p); p.unsent == nil || !strings.Contains(p.unsent.Error(), "unknown command") {
		t.Errorf("an agent that does not know it: %v", p.unsent)
	}
}
