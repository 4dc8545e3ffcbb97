package kubectl

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
	well := errand.Fitness{Controller: "23.03.1", Handoff: true}
	return preflight{
		vmi: vmi, ports: []v1alpha1.Port{port}, mtu: 1442, last: recorded(), nodes: []corev1.Node{node("node1"), node("node2"), node("node3")},
		agents:    map[string]bool{"node1": true, "node2": true, "node3": true},
		echoes:    map[string][]errand.Echo{"node2": {{Size: 1442, Microseconds: 412}}, "node3": {{Size: 1442, Microseconds: 1380}}},
		ovn:       &ovnReleases{controllers: map[string]errand.Fitness{"node1": well, "node2": well, "node3": well}, northd: "\"23.03.1-20.27.0-70.6\"\n"},
		isolation: isolation{handover: handover{grace: time.Minute}},
	}
}

// isolatingPolicy is a NetworkPolicy of those with a label app, or of all.
func isolatingPolicy(name, app string, types ...networkingv1.PolicyType) networkingv1.NetworkPolicy {
	np := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: types}}
	if app != "" {
		np.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
	}
	return np
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
			p.nodes[3].Name, p.agents["node4"], p.ovn.controllers["node4"] = "node4", true, p.ovn.controllers["node1"]
			p.echoes["node2"] = []errand.Echo{{Size: 1442, Error: "no answer within 1s"}, {Size: 1280, Microseconds: 300}}
			p.echoes["node3"] = []errand.Echo{{Size: 1442, Error: "no answer within 1s"}, {Size: 1280, Error: "no answer within 1s"}}
		},
		"not tried": func(p *preflight) { p.echoes, p.ovn = nil, nil },
		"isolated": func(p *preflight) {
			p.isolation.policies = []networkingv1.NetworkPolicy{isolatingPolicy("web", "web", networkingv1.PolicyTypeIngress), isolatingPolicy("all", "", networkingv1.PolicyTypeEgress), isolatingPolicy("db", "db", networkingv1.PolicyTypeEgress)}
			p.ovn.northd, p.ovn.controllers["node3"] = "", errand.Fitness{Controller: "23.03.1"} // ovn-northd is not Godwit's
		},
		"isolated without handover": func(p *preflight) {
			p.isolation.policies = []networkingv1.NetworkPolicy{isolatingPolicy("web", "web", networkingv1.PolicyTypeIngress)}
			p.isolation.handover.off = true
			p.ovn.unasked = map[string]error{"node2": errors.New("nobody may run programs there")}
			p.ovn.controllers["node3"] = errand.Fitness{Error: "version at /run/ovn/ovn-controller.7.ctl: it does not answer: context deadline exceeded"}
			p.ovn.unread = errors.New("no member of OVN_Northbound answers: kubectl ovn db status")
		},
		"isolated with handoff": func(p *preflight) {
			p.isolation.policies = []networkingv1.NetworkPolicy{isolatingPolicy("web", "web", networkingv1.PolicyTypeIngress)}
			p.isolation.handover.off = true // which does not matter then
		},
		"isolated by many": func(p *preflight) {
			for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
				p.isolation.policies = append(p.isolation.policies, isolatingPolicy(name, "web", networkingv1.PolicyTypeEgress))
			}
			p.isolation.unknown = errors.New("there is no pod of godwit-controller")
			p.ovn.controllers["node1"] = errand.Fitness{Controller: "23.03.1"}
		},
		"policies unread": func(p *preflight) { p.isolation.unread = errors.New("forbidden") },
		"old ovn": func(p *preflight) { // one node that can take it is left
			p.ovn.controllers["node1"], p.ovn.controllers["node2"] = errand.Fitness{Controller: "22.12.1"}, errand.Fitness{Controller: "23.03.0"}
		},
		"older ovn": func(p *preflight) { // none is
			p.ovn.controllers["node2"], p.ovn.controllers["node3"] = errand.Fitness{Controller: "22.03.2"}, errand.Fitness{Controller: "22.12.0"}
			p.ovn.northd = "22.03.2-20.21.0-58.3"
		},
		"ovn of two series": func(p *preflight) {
			p.ovn.controllers["node2"], p.ovn.controllers["node3"], p.ovn.northd = errand.Fitness{Controller: "24.03.2"}, errand.Fitness{Controller: "23.06.0-139.el9"}, "24.03.5-20.33.0-78.0"
		},
		"agent silent": func(p *preflight) {
			p.isolation.policies = []networkingv1.NetworkPolicy{isolatingPolicy("web", "web", networkingv1.PolicyTypeIngress)}
			p.ovn.controllers["node2"] = errand.Fitness{Controller: "23.03.1", HandoffError: "ask the agent at --metrics-address :9476: connection refused"}
		},
		"ovn unknown": func(p *preflight) { p.ovn.controllers["node2"], p.ovn.northd = errand.Fitness{}, "none" },
		"not ready": func(p *preflight) {
			p.nodes[1].Status.Conditions, p.nodes[2].Status.Conditions[0].Status = nil, corev1.ConditionUnknown
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := ready()
			wrong(&p)
			var b strings.Builder
			d := p.judge()
			d.write(&b)
			err := d.moves()
			text := b.String()
			if err != nil {
				text += "error: " + err.Error() + "\n"
			}
			golden(t, "check-"+strings.ReplaceAll(name, " ", "-")+".txt", text)
			for _, l := range d.Checks {
				if (l.Grade == fine) != (l.Remedy == "") {
					t.Errorf("%s %q has the remedy %q", l.Grade, l.Finding, l.Remedy)
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

// A VM's MTU is what its launcher was told, whatever the nodes carry since.
func TestMTUOfAVM(t *testing.T) {
	launcher := func(name, vmi string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "00000000-0000-4000-8000-000000000001"}}
		text := podIdentity(t, string(p.UID))
		p.Annotations = map[string]string{v1alpha1.IdentityAnnotation: strings.Replace(text, `"nics"`, `"vmi":{"name":"web1","uid":"`+vmi+`"},"nics"`, 1)}
		return p
	}
	p := ready()
	p.vmi.UID = "u-1"
	for i := range p.nodes {
		p.nodes[i].Annotations[v1alpha1.MTUAnnotation] = []string{"8942", "1442", "1342"}[i]
	}
	agent := agentPod("node1")
	agent.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	objects := []client.Object{p.vmi, agent, &p.nodes[0], &p.nodes[1], &p.nodes[2]}
	for want, pods := range map[int][]client.Object{1442: {launcher("virt-launcher-web1-x", "u-1")}, 0: {launcher("virt-launcher-web1-x", "u-2")}} {
		got, err := clusterOf(t, nil, append(pods, objects...)...).preflight(t.Context(), "web1")
		if err != nil || got.mtu != want {
			t.Errorf("the VM's MTU is %d, want %d (%v)", got.mtu, want, err)
		}
		p.mtu = got.mtu
		var found []string
		for _, v := range p.destinations() {
			found = append(found, v.finding)
		}
		if warned := strings.Join(found, "\n"); strings.Contains(warned, "node2 carries") || strings.Contains(warned, "node3 carries packets of 1342 bytes, the VM has an MTU of 1442") != (want == 1442) {
			t.Errorf("MTU %d: %s", want, warned)
		}
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

// The agents of the VM's node and of those that can take it are asked for their ovn-controllers' releases, and ovn-northd where it runs as Godwit's pods.
func TestAskReleases(t *testing.T) {
	p := ready()
	p.agents["node3"] = false
	said := answers{
		"agent-node1/agent: godwit-agent fitness --metrics-address=127.0.0.1:9500 --ovn-run-dir=/run/other": {stdout: `{"controller":"23.03.1","handoff":true}`},
		"agent-node2/agent: godwit-agent fitness":                                                           {stderr: `Error: unknown command "fitness" for "godwit-agent"`, code: 1},
	}
	for what, test := range map[string]struct {
		objects []client.Object
		northd  string
		unread  string
	}{
		"OVN elsewhere":      {},
		"OVN as pods":        {objects: []client.Object{ovnPod("ovn-central-0", centralComponent, "node1")}, northd: "\"23.03.1-20.27.0-70.6\"\n"},
		"a database in vain": {objects: []client.Object{ovnPod("ovn-central-1", centralComponent, "node1")}, unread: "no member of OVN_Northbound answers"},
	} {
		said["ovn-central-0/nb: ovs-appctl -t /run/ovn/ovnnb_db.ctl cluster/status OVN_Northbound"] = answer{stdout: "Name: OVN_Northbound\nStatus: cluster member\nRole: follower\n"}
		said["ovn-central-0/nb: ovn-nbctl --timeout=15 --no-leader-only get NB_Global . options:northd_internal_version"] = answer{stdout: test.northd}
		elsewhere := agentPod("node1")
		elsewhere.Spec.Containers = []corev1.Container{{Name: "other", Args: []string{"--ovn-run-dir=/none"}}, {Name: agentComponent, Args: []string{"--node-name=$(NODE_NAME)", "--metrics-address", "127.0.0.1:9500", "--ovn-run-dir=/run/other"}}}
		unknown := agentPod("node2")
		unknown.Spec.Containers = []corev1.Container{{Name: agentComponent, Args: []string{"--metrics-address=$(ADDRESS)"}}}
		c := clusterOf(t, said, append(test.objects, elsewhere, unknown)...)
		c.askReleases(t.Context(), &p)
		if got := p.ovn.controllers["node1"]; got != (errand.Fitness{Controller: "23.03.1", Handoff: true}) || p.ovn.unasked["node1"] != nil || len(p.ovn.controllers) != 2 {
			t.Errorf("%s: node1 has %+v, %v, of %v", what, got, p.ovn.unasked["node1"], p.ovn.controllers)
		}
		if err := p.ovn.unasked["node2"]; err == nil || !strings.Contains(err.Error(), "unknown command") {
			t.Errorf("%s: an agent that does not know it: %v", what, err)
		}
		if p.ovn.northd != test.northd || (p.ovn.unread == nil) != (test.unread == "") || p.ovn.unread != nil && !strings.Contains(p.ovn.unread.Error(), test.unread) {
			t.Errorf("%s: northd has %q, %v", what, p.ovn.northd, p.ovn.unread)
		}
	}
}

// What the controller was told about handover: of pods that differ the worst, and of none, or of arguments that nobody understands, an error.
func TestHandoverOfTheController(t *testing.T) {
	for _, test := range []struct {
		args []string // of each pod
		want handover
		err  string
	}{
		{args: []string{"--sb-remote=tcp:192.0.2.1:6642"}, want: handover{grace: time.Minute}},
		{args: []string{"--handover-grace=5m"}, want: handover{grace: 5 * time.Minute}},
		{args: []string{"--handover-rules --handover-grace 30s"}, want: handover{grace: 30 * time.Second}},
		{args: []string{"", "--handover-rules=false"}, want: handover{off: true, grace: time.Minute}},
		{args: []string{"--handover-grace=2m", "--handover-grace=10s"}, want: handover{grace: 10 * time.Second}},
		{args: []string{"--handover-rules=$(RULES)"}, err: `pod controller-0: its argument --handover-rules=$(RULES)`},
		{err: "there is no pod of godwit-controller"},
	} {
		gone := ovnPod("gone", managerComponent, "node1")
		gone.Status.Phase = corev1.PodFailed
		objects := []client.Object{gone}
		for i, args := range test.args {
			p := ovnPod(fmt.Sprintf("controller-%d", i), managerComponent, "node1")
			p.Spec.Containers = []corev1.Container{{Name: "controller", Args: strings.Fields(args)}}
			objects = append(objects, p)
		}
		got, err := clusterOf(t, nil, objects...).handover(t.Context())
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: %v, want %q", test.args, err, test.err)
			}
			continue
		}
		if err != nil || got != test.want {
			t.Errorf("%q: %+v, %v, want %+v", test.args, got, err, test.want)
		}
	}
}

// -o json has what the text has, and the exit code is the same.
func TestCheckAsJSON(t *testing.T) {
	p := ready()
	p.isolation.unread = errors.New("forbidden")
	d := p.judge()
	var text strings.Builder
	if err := d.json(&text); err != nil {
		t.Fatal(err)
	}
	var got diagnosis
	if err := json.Unmarshal([]byte(text.String()), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, got); diff != "" || got.Warnings != 1 || got.moves() == nil {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
