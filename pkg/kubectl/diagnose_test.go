package kubectl

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/errand"
	"github.com/godwit-cni/godwit/pkg/raft"
)

func fromLab(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "diagnose", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// recordedObjects are those of a lab of three nodes with OVN as pods and a VM that runs; its pod's phase alone is that of a moment later.
func recordedObjects(t *testing.T) []client.Object {
	t.Helper()
	var raw []json.RawMessage
	if err := json.Unmarshal([]byte(fromLab(t, "api.json")), &raw); err != nil {
		t.Fatal(err)
	}
	var out []client.Object
	for _, text := range raw {
		var kind metav1.TypeMeta
		if err := json.Unmarshal(text, &kind); err != nil {
			t.Fatal(err)
		}
		o := map[string]client.Object{"Node": &corev1.Node{}, "Pod": &corev1.Pod{}, "Port": &v1alpha1.Port{}, "Lease": &coordinationv1.Lease{}, "ConfigMap": &corev1.ConfigMap{}}[kind.Kind]
		if err := json.Unmarshal(text, o); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

// recordedDaemons answer what the lab's answered.
func recordedDaemons(t *testing.T) asker {
	t.Helper()
	return func(_ context.Context, pod, container string, args ...string) (string, error) {
		switch {
		case args[0] == "ovs-appctl" && strings.HasPrefix(pod, "ovn-central-"):
			return fromLab(t, pod+"-"+container+".txt"), nil
		case args[0] == "ovn-nbctl" && container == "nb":
			return fromLab(t, "nb.txt"), nil
		case args[0] == "ovn-sbctl" && container == "sb":
			return fromLab(t, "sb.txt"), nil
		case args[0] == "ovs-vsctl" && container == "vswitchd":
			return fromLab(t, pod+".txt"), nil
		case args[0] == "/usr/bin/godwit-ovn" && container == "ovn-controller":
			return "", nil
		}
		return "", errors.New("nobody has recorded what it says to " + strings.Join(args, " "))
	}
}

// recordedFacts are the lab's, a moment after its lease was renewed.
func recordedFacts(t *testing.T, ask asker) *facts {
	t.Helper()
	now := time.Date(2026, 11, 22, 4, 29, 50, 0, time.UTC)
	f, err := clusterOf(t, nil, recordedObjects(t)...).look(t.Context(), ask, now)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (d *diagnosis) text() string {
	var b strings.Builder
	d.print(&b)
	return b.String()
}

// TestDiagnoseHealthy: of a cluster that is well every line is.
func TestDiagnoseHealthy(t *testing.T) {
	d := examine(recordedFacts(t, recordedDaemons(t)))
	const want = `ok    all parts are ready: controller 2, ovn-central 3, agent 3, ovs-node 3, ovn-controller 3
ok    all pods of an image run the same version
ok    the controller on node2 leads
ok    all 3 nodes are chassis
ok    every ovn-controller is connected to the southbound database
ok    all nodes carry packets of 1442 bytes
ok    all 6 tunnels are there, and none is known to be mute
ok    OVN_Northbound is led by ovn-central-0, OVN_Southbound is led by ovn-central-0; all 3 members know it
ok    every port asks for the node that carries it
ok    the API and the northbound database agree on 4 ports
ok    all 1 ports of what runs are claimed where they are asked for
ok    all 1 interfaces of what runs are installed
ok    no other network is in the way

13 ok, 0 warn, 0 fail
`
	if diff := cmp.Diff(want, d.text()); diff != "" {
		t.Error(diff)
	}
	if err := d.verdict(); err != nil {
		t.Error(err)
	}
}

// TestDiagnoseFaults: each thing that can be wrong is found and named, with its remedy, and nothing else changes.
func TestDiagnoseFaults(t *testing.T) {
	const vm = "vm/default/vm1/default"
	component := func(f *facts, name string) *corev1.Pod { return f.component(name)[0] }
	onNode := func(f *facts, node string, change func(*switchOf)) {
		s := f.switches[node]
		s.interfaces = append([]netInterface(nil), s.interfaces...)
		change(&s)
		f.switches[node] = s
	}
	named := func(s *switchOf, name string) *netInterface {
		for i := range s.interfaces {
			if s.interfaces[i].name == name {
				return &s.interfaces[i]
			}
		}
		t.Fatalf("no interface %s", name)
		return nil
	}
	row := func(f *facts, change func(*logicalPort)) {
		r := f.rows[vm]
		change(&r)
		f.rows[vm] = r
	}
	moving := func(f *facts) {
		pm := v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m"}}
		pm.Spec.VMI.Name, pm.Status.Result = "vm1", v1alpha1.MigrationRunning
		f.moves = append(f.moves, pm)
	}
	for name, c := range map[string]struct {
		wrong func(*facts)
		// want are parts of the lines that are not ok, "grade check: finding → remedy", one each; none: all are ok.
		want []string
	}{
		"pod not ready": {func(f *facts) {
			p := component(f, "agent")
			p.Status.Conditions = nil
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
		}, []string{"fail components: pod godwit-agent-ckdht of agent on node2 is not ready: container agent: CrashLoopBackOff → kubectl -n godwit-system describe pod godwit-agent-ckdht"}},
		"pod missing": {func(f *facts) { component(f, "ovn-controller").Status.Phase = corev1.PodFailed }, []string{"fail components: node node3 has no pod of ovn-controller → kubectl -n godwit-system get pods"}},
		"node down":   {func(f *facts) { f.nodes[2].Status.Conditions = nil }, []string{"fail components: node node3 is not Ready → kubectl describe node node3"}},
		"no controller": {func(f *facts) {
			for _, p := range f.component("controller") {
				p.Status.Phase = corev1.PodFailed
			}
		}, []string{"fail components: no pod of the controller is there"}},
		"probe failed": {func(f *facts) {
			p := component(f, "agent")
			p.Status.Conditions, p.Status.ContainerStatuses[0].Ready = nil, false
		}, []string{"fail components: pod godwit-agent-ckdht of agent on node2 is not ready: container agent does not pass its probe → kubectl -n godwit-system describe pod"}},
		"container ended": {func(f *facts) {
			p := component(f, "agent")
			p.Status.Conditions, p.Status.ContainerStatuses[0].State = nil, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2}}
		}, []string{"fail components: pod godwit-agent-ckdht of agent on node2 is not ready: container agent ended with 2"}},
		"other addresses of a pod": {func(f *facts) {
			p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "u"}, Spec: corev1.PodSpec{NodeName: "node1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
			p.Annotations = map[string]string{v1alpha1.IdentityAnnotation: `{"podUID":"u","subnet":"default","ips":["10.244.0.5/16"],"mac":"0a:67:0a:f4:00:05","gateways":["10.244.0.1"],"mtu":1442}`}
			f.pods = append(f.pods, p)
			const port = "pod/shop/db/default"
			f.rows[port] = logicalPort{addresses: []string{"0a:67:0a:f4:00:05 10.244.0.6"}, options: map[string]string{"requested-chassis": "node1"}}
			f.bindings[port] = binding{chassis: "node1", up: true}
			onNode(f, "node1", func(s *switchOf) {
				s.interfaces = append(s.interfaces, netInterface{name: "gw1", port: 9, ids: map[string]string{"iface-id": port, "ovn-installed": "true"}})
			})
		}, []string{`fail rows: pod shop/db has the addresses "0a:67:0a:f4:00:05 10.244.0.5" by its annotation, "0a:67:0a:f4:00:05 10.244.0.6" by the northbound database`}},
		"a tunnel that carries less": {func(f *facts) {
			f.echoes = map[string]map[string][]errand.Echo{"node1": {"node2": {{Size: 1442, Error: "no answer"}, {Size: 1280}}, "node3": {{Size: 1442}}}}
		}, []string{"warn echoes: the tunnel between node1 and node2 carries packets of 1280 bytes, and not those of 1442, as pods send them → something between the nodes carries less"}},
		"a tunnel that carries nothing": {func(f *facts) {
			f.echoes = map[string]map[string][]errand.Echo{"node1": {"node2": {{Size: 1442, Error: "no answer"}, {Size: 1280, Error: "no answer"}}}}
		}, []string{"fail echoes: nothing comes back from node2 of what node1 sends through the tunnel → a firewall between the nodes must let UDP port 6081 through"}},
		"a node without an address": {func(f *facts) { f.echoes = map[string]map[string][]errand.Echo{"node1": {"node2": nil}} },
			[]string{"fail echoes: node2 has no address to which a packet could be sent (annotation godwit.dev/join) → godwit-controller writes it"}},
		"two versions": {func(f *facts) { component(f, "ovs-node").Status.ContainerStatuses[0].ImageID = "sha256:old" }, []string{"warn versions: OVN runs in 2 versions: "}},
		"no leader":    {func(f *facts) { f.lease = nil }, []string{"fail leader: no controller leads → kubectl -n godwit-system get pods"}},
		"leader silent": {func(f *facts) { f.now = f.now.Add(time.Minute) },
			[]string{"fail leader: the controller on node2 led, and has not said so for 1m1s"}},
		"no chassis": {func(f *facts) { f.chassis = f.chassis[:2] }, []string{
			"fail chassis: node node3 has no Chassis", "fail pins: port node/node3 asks for node3, which is no chassis", "fail pins: port " + vm + " asks for node3, which is no chassis",
		}},
		"chassis of nobody": {func(f *facts) { f.nodes = f.nodes[:2] }, []string{
			"warn chassis: Chassis node3 is of no Node → godwit-controller deletes", "warn rows: row node/node3 of the northbound database is of no pod, Port or Node",
		}},
		"address twice": {func(f *facts) {
			f.chassis[1].ips = f.chassis[0].ips
			onNode(f, "node2", func(s *switchOf) { s.ids = map[string]string{"ovn-encap-ip": "172.30.1.11"} })
			f.switches = map[string]switchOf{"node2": f.switches["node2"]}
		}, []string{"fail chassis: tunnels to node1 and node2 end at one address, 172.30.1.11", "*"}},
		"other address by the node": {func(f *facts) {
			onNode(f, "node2", func(s *switchOf) { s.ids = map[string]string{"ovn-encap-ip": "10.9.9.9"} })
		},
			[]string{"fail chassis: tunnels to node2 end at 172.30.1.12 by the southbound database, at 10.9.9.9 by the node itself → the agent writes it"}},
		"not the Node's address": {func(f *facts) { f.settings["GODWIT_UNDERLAY"] = "" }, []string{
			"fail chassis: tunnels to node1 end at 172.30.1.11, which is not the Node's address (172.30.0.11 fd00:172:30::11)", "fail chassis: tunnels to node2", "fail chassis: tunnels to node3",
		}},
		"ovn-controller hangs": {func(f *facts) { onNode(f, "node1", func(s *switchOf) { s.controller = "it does not answer" }) },
			[]string{"fail controllers: ovn-controller on node1: it does not answer → its pod's log"}},
		"smaller MTU": {func(f *facts) { f.nodes[1].Annotations[v1alpha1.MTUAnnotation] = "1342" },
			[]string{"warn mtu: pods of node2 carry packets of 1342 bytes, those of node1, node3 of 1442 → give the underlay of all nodes the same MTU"}},
		"no MTU": {func(f *facts) { delete(f.nodes[1].Annotations, v1alpha1.MTUAnnotation) }, []string{"warn mtu: node node2 does not say which MTU"}},
		"no tunnel": {func(f *facts) { onNode(f, "node3", func(s *switchOf) { named(s, "ovn-node1-0").remote = "10.0.0.1" }) },
			[]string{"fail tunnels: node3 has no tunnel to node1 (172.30.1.11) → docs/runbooks.md, GodwitTunnelMissing"}},
		"tunnel failed": {func(f *facts) {
			onNode(f, "node3", func(s *switchOf) { named(s, "ovn-node1-0").trouble = "could not open" })
		},
			[]string{"fail tunnels: ovs-vswitchd on node3 could not make the tunnel ovn-node1-0 to node1: could not open"}},
		"tunnel down by BFD": {func(f *facts) { onNode(f, "node3", func(s *switchOf) { named(s, "ovn-node1-0").tested = "down" }) },
			[]string{"fail tunnels: BFD on node3 says that the tunnel ovn-node1-0 to node1 is down → a firewall"}},
		"tunnel mute": {func(f *facts) {
			onNode(f, "node3", func(s *switchOf) { i := named(s, "ovn-node1-0"); i.sent, i.received = 500, 0 })
		},
			[]string{"warn tunnels: node3 has sent 500 packets to node1 and received none → a firewall between the nodes must let UDP port 6081 through"}},
		"database without a leader": {func(f *facts) {
			for i := range f.members {
				if m := &f.members[i]; m.database == "OVN_Southbound" {
					m.Role, m.Leader = "candidate", "unknown"
				}
			}
		}, []string{"fail databases: OVN_Southbound at ovn-central-0 knows no leader", "fail databases: OVN_Southbound at ovn-central-1", "fail databases: OVN_Southbound at ovn-central-2",
			"fail databases: OVN_Southbound has no leader: nobody can write to it → docs/runbooks.md, GodwitRaftWithoutLeader"}},
		"two leaders": {func(f *facts) {
			f.members[1].Role, f.members[1].Servers, f.members[1].database = "leader", f.members[0].Servers, f.members[0].database
		}, []string{"fail databases: OVN_", "*"}},
		"member without room": {func(f *facts) { f.members[1].Member, f.members[1].Failed = false, true }, []string{"fail databases: OVN_Northbound at ovn-central-1 could not write to its disk"}},
		"member not joined":   {func(f *facts) { f.members[0].Member = false }, []string{"fail databases: OVN_"}},
		"member away": {func(f *facts) {
			for i := range f.members {
				if f.members[i].Leads() {
					f.members[i].Servers = append([]raft.Server(nil), f.members[i].Servers...)
					for j := range f.members[i].Servers {
						f.members[i].Servers[j].Silent = time.Minute // of itself too, which says nothing
					}
					return
				}
			}
		}, []string{"has not heard of its member tcp:172.30.0.1", "has not heard of its member tcp:172.30.0.1"}},
		"member too many": {func(f *facts) { component(f, "ovn-central").Status.Phase = corev1.PodFailed },
			[]string{"warn databases: OVN_Northbound has 3 members by", "warn databases: OVN_Northbound has 3", "warn databases: OVN_Northbound has 3", "warn databases: OVN_Southbound has 3", "warn databases: OVN_Southbound has 3", "warn databases: OVN_Southbound has 3"}},
		"stale pair": {func(f *facts) { row(f, func(r *logicalPort) { r.options["requested-chassis"] = "node3,node1" }) }, []string{"fail pins: port " + vm + " asks for node3,node1, and no migration moves it → the controller asks for the right one"}},
		"a pair while it moves": {func(f *facts) {
			row(f, func(r *logicalPort) { r.options["requested-chassis"] = "node3,node1" })
			moving(f)
		}, nil},
		"stale strategy":       {func(f *facts) { row(f, func(r *logicalPort) { r.options["activation-strategy"] = "rarp" }) }, []string{"fail pins: port " + vm + " waits for an announcement"}},
		"pinned elsewhere":     {func(f *facts) { row(f, func(r *logicalPort) { r.options["requested-chassis"] = "node1" }) }, []string{"fail pins: port " + vm + " asks for node1, and what it is of runs on node3", "fail claims: port " + vm + " is claimed by node3, and asks for node1"}},
		"pinned to nothing":    {func(f *facts) { row(f, func(r *logicalPort) { delete(r.options, "requested-chassis") }) }, []string{"fail pins: port " + vm + " asks for no node: any may claim it", "fail claims"}},
		"pinned to no chassis": {func(f *facts) { row(f, func(r *logicalPort) { r.options["requested-chassis"] = "nod3" }) }, []string{"fail pins: port " + vm + " asks for nod3, which is no chassis", "fail claims"}},
		"row missing":          {func(f *facts) { delete(f.rows, vm) }, []string{"fail rows: pod default/virt-launcher-vm1-mt6d5 has no row " + vm, "fail rows: Port default/vm1 has no row", "warn claims: the southbound database has a Port_Binding of " + vm + ", the northbound one has no such row → does an ovn-northd work? kubectl -n godwit-system logs"}},
		"row of nobody": {func(f *facts) {
			f.rows["pod/shop/gone/default"] = logicalPort{options: map[string]string{"requested-chassis": "node1"}}
		}, []string{"warn rows: row pod/shop/gone/default of the northbound database is of no pod", "fail claims: the southbound database has no Port_Binding of pod/shop/gone/default"}},
		"other addresses of a VM": {func(f *facts) {
			row(f, func(r *logicalPort) { r.addresses = []string{"0a:67:0a:f4:00:02 10.244.0.99"} })
		}, []string{`fail rows: Port default/vm1 has 0a:67:0a:f4:00:02 10.244.0.2 fd00:10:244::2 by its status, "0a:67:0a:f4:00:02 10.244.0.99" by the northbound database`}},
		"a Port whose interface another has": {func(f *facts) {
			p := *f.ports[0].DeepCopy()
			p.Name, p.Status.IPs, p.Status.Conditions = "moved", []string{"10.244.0.99"}, []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonTargetTaken}}
			f.ports = append(f.ports, p)
		}, nil},
		"claimed elsewhere": {func(f *facts) { b := f.bindings[vm]; b.chassis = "node2"; f.bindings[vm] = b }, []string{"fail claims: port " + vm + " is claimed by node2, and asks for node3 → docs/runbooks.md, GodwitForbiddenClaim"}},
		"claimed by nobody": {func(f *facts) { b := f.bindings[vm]; b.chassis = ""; f.bindings[vm] = b }, []string{"fail claims: port " + vm + " of pod default/virt-launcher-vm1-mt6d5 is claimed by no node, and asks for node3 → does ovn-controller run"}},
		"not up":            {func(f *facts) { b := f.bindings[vm]; b.up = false; f.bindings[vm] = b }, []string{"fail claims: port " + vm + " is claimed by node3 and not up"}},
		"interface missing": {func(f *facts) { onNode(f, "node3", func(s *switchOf) { named(s, "gwebae41a46cc").ids = nil }) }, []string{"fail interfaces: pod default/virt-launcher-vm1-mt6d5 on node3: Open vSwitch has no interface of port " + vm + " → delete the pod"}},
		"interface failed":  {func(f *facts) { onNode(f, "node3", func(s *switchOf) { named(s, "gwebae41a46cc").port = -1 }) }, []string{"fail interfaces: pod default/virt-launcher-vm1-mt6d5 on node3: ovs-vswitchd could not take interface gwebae41a46cc"}},
		"interface not installed": {func(f *facts) {
			onNode(f, "node3", func(s *switchOf) { named(s, "gwebae41a46cc").ids = map[string]string{"iface-id": vm} })
		}, []string{"fail interfaces: pod default/virt-launcher-vm1-mt6d5 on node3: OVN has not installed the flows of interface gwebae41a46cc"}},
		"interface of nobody": {func(f *facts) {
			onNode(f, "node1", func(s *switchOf) {
				s.interfaces = append(s.interfaces, netInterface{name: "gw1", port: 9, ids: map[string]string{"iface-id": "pod/shop/gone/default"}})
			})
		}, []string{"warn interfaces: interface gw1 on node1 is of port pod/shop/gone/default, which no pod of the node has → the agent removes"}},
		"no ovn0":                      {func(f *facts) { onNode(f, "node1", func(s *switchOf) { named(s, "ovn0").ids = nil }) }, []string{"fail interfaces: ovn0 on node1: Open vSwitch has no interface of port node/node1"}},
		"certificate expired":          {func(f *facts) { f.certificates["godwit-ovn-admin"] = f.now.Add(-time.Hour) }, []string{"fail certificates: the certificate in Secret godwit-ovn-admin expired on 2026-11-22"}},
		"certificate expires":          {func(f *facts) { f.certificates["godwit-ovn-admin"] = f.now.Add(50 * time.Hour) }, []string{"warn certificates: the certificate in Secret godwit-ovn-admin has 2 days left"}},
		"certificates in order":        {func(f *facts) { f.certificates["godwit-ovn-admin"] = f.now.Add(90 * 24 * time.Hour) }, nil},
		"another CNI":                  {func(f *facts) { f.pods = append(f.pods, daemon("kube-system", "calico-node")) }, []string{"fail other networks: Calico runs too: pod kube-system/calico-node-x → remove it"}},
		"an annotation of another CNI": {func(f *facts) { f.nodes[0].Annotations["flannel.alpha.coreos.com/backend-type"] = "vxlan" }, []string{"warn other networks: Flannel has left the annotation flannel.alpha.coreos.com/backend-type on node node1"}},
		"kube-proxy":                   {func(f *facts) { f.pods = append(f.pods, daemon("kube-system", "kube-proxy")) }, []string{"warn other networks: kube-proxy serves Services"}},
		"a pod that is not in a network": {func(f *facts) {
			p := *component(f, "agent")
			p.Namespace, p.Name, p.Spec.HostNetwork = "shop", "old", false
			f.pods = append(f.pods, p)
		}, []string{"warn rows: pod shop/old runs and has no identity"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := recordedFacts(t, recordedDaemons(t))
			c.wrong(f)
			var got []string
			d := examine(f)
			for _, l := range d.Checks {
				if l.Grade == fine {
					continue
				}
				if l.Remedy == "" {
					t.Errorf("%s has no remedy", l.Finding)
				}
				got = append(got, string(l.Grade)+" "+l.Check+": "+l.Finding+" → "+l.Remedy)
			}
			for i, w := range c.want {
				switch {
				case w == "*":
					return // what follows from it
				case i >= len(got) || !strings.Contains(got[i], w):
					t.Errorf("line %d should have %q; there are\n%s", i, w, strings.Join(got, "\n"))
					return
				}
			}
			if len(got) > len(c.want) {
				t.Errorf("too much was found:\n%s", strings.Join(got[len(c.want):], "\n"))
			}
			if (d.verdict() == nil) != (len(c.want) == 0) {
				t.Errorf("the verdict is %v", d.verdict())
			}
		})
	}
}

// daemon is a pod of a DaemonSet.
func daemon(namespace, set string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: set + "-x", OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: set}}}, Spec: corev1.PodSpec{HostNetwork: true}}
}

// TestDiagnoseEchoes: each agent is asked once, for all other nodes, with packets as long as pods'; one that cannot is told, and the others tell.
func TestDiagnoseEchoes(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]string{}
	ask := func(_ context.Context, pod, _ string, args ...string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		asked[pod] = strings.Join(args, " ")
		if pod == "godwit-agent-k6jm7" {
			return "", errors.New("unknown command")
		}
		var all []errand.Echo
		for _, a := range args[5:] {
			all = append(all, errand.Echo{To: netip.MustParseAddr(a), Size: 1442, Microseconds: 5})
		}
		text, err := json.Marshal(all)
		return string(text), err
	}
	f := recordedFacts(t, recordedDaemons(t))
	clusterOf(t, nil).tryTunnels(t.Context(), ask, f)
	want := map[string]string{
		"godwit-agent-gzcbv": "godwit-agent echo --size 1442 -- 100.64.0.4 100.64.0.6", "godwit-agent-ckdht": "godwit-agent echo --size 1442 -- 100.64.0.2 100.64.0.6",
		"godwit-agent-k6jm7": "godwit-agent echo --size 1442 -- 100.64.0.2 100.64.0.4",
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	d := examine(f)
	for _, w := range []string{
		"ok    packets of 1442 bytes came back through the tunnels, 4 times there and back\n",
		"warn  what the tunnels of node3 carry could not be looked at: unknown command\n      → does its agent run",
	} {
		if text := d.text(); !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}

// TestDiagnoseUnread: what cannot be asked is said, with the container's own words, and the rest is looked at.
func TestDiagnoseUnread(t *testing.T) {
	answers := recordedDaemons(t)
	f := recordedFacts(t, func(ctx context.Context, pod, container string, args ...string) (string, error) {
		if pod == "ovs-node-hhqrh" {
			return "", errors.New("container not found")
		}
		return answers(ctx, pod, container, args...)
	})
	d := examine(f)
	want := "fail  container vswitchd of pod ovs-node-hhqrh could not be looked at: container not found\n      → does it run? kubectl -n godwit-system describe pod ovs-node-hhqrh\n"
	if text := d.text(); !strings.Contains(text, want) || d.Failures != 1 || d.Warnings != 0 {
		t.Error(text)
	}
}

// TestDiagnoseWithoutPods: where OVN is somebody else's, that is said, and Godwit's own parts are looked at.
func TestDiagnoseWithoutPods(t *testing.T) {
	var objects []client.Object
	for _, o := range recordedObjects(t) {
		if !strings.HasPrefix(o.GetName(), "ov") {
			objects = append(objects, o)
		}
	}
	f, err := clusterOf(t, nil, objects...).look(t.Context(), nil, time.Date(2026, 11, 22, 4, 29, 50, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	d := examine(f)
	const want = `ok    all parts are ready: controller 2, agent 3
ok    all pods of an image run the same version
ok    the controller on node2 leads
ok    all nodes carry packets of 1442 bytes
ok    no other network is in the way
warn  OVN's databases and the nodes' Open vSwitch could not be looked at: they do not run as pods of Godwit's
      → look at them where they run: docs/runbooks.md has the commands

5 ok, 1 warn, 0 fail
`
	if diff := cmp.Diff(want, d.text()); diff != "" {
		t.Error(diff)
	}
}

// TestDiagnoseReport: what a bug's reader needs is there, in the file and as JSON, and of Secrets nothing but a date.
func TestDiagnoseReport(t *testing.T) {
	objects := append(recordedObjects(t), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: "godwit-ovn-admin"}, Data: map[string][]byte{"tls.crt": []byte("no certificate"), "tls.key": []byte("very secret")},
	})
	for _, o := range objects {
		if m, ok := o.(*corev1.ConfigMap); ok {
			m.Data["GODWIT_SB_REMOTE"], m.Data["GODWIT_OTLP_ENDPOINT"] = "ssl:172.30.0.11:6642", "https://me:very-secret@collector:4318/v1/traces?key=very-secret"
		}
		if l, ok := o.(*coordinationv1.Lease); ok {
			l.Spec.RenewTime = &metav1.MicroTime{Time: time.Now().Add(time.Hour)}
		}
	}
	file := filepath.Join(t.TempDir(), "report.txt")
	var out strings.Builder
	err := clusterOf(t, nil, objects...).diagnose(t.Context(), request{ask: recordedDaemons(t), out: &out, json: true, report: file})
	if err == nil || !strings.Contains(err.Error(), "1 of 14 lines fail") {
		t.Errorf("the verdict is %v:\n%s", err, out.String())
	}
	var d diagnosis
	if err := json.Unmarshal([]byte(out.String()), &d); err != nil || d.OK != 13 || d.Failures != 1 || !strings.Contains(d.Checks[13].Finding, "Secret godwit-ovn-admin") {
		t.Errorf("%v: %+v", err, d)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"fail  unread: Secret godwit-ovn-admin", "# Nodes\nnode1", "ovn-central-0 on node3, Running", "Role: leader", "Open vSwitch on node3", "vm/default/vm1/default  0a:67:0a:f4:00:02 10.244.0.2", "GODWIT_UNDERLAY=172.30.1.0/24", "GODWIT_OTLP_ENDPOINT=https://…collector:4318/v1/traces…\n"} {
		if !strings.Contains(string(text), part) {
			t.Errorf("the report lacks %q", part)
		}
	}
	if said := string(text) + out.String(); strings.Contains(said, "very secret") || strings.Contains(said, "very-secret") {
		t.Error("a key is in the report")
	}
}

func TestParseTables(t *testing.T) {
	tables, err := parseTables(`{"data":[["a",["uuid","u1"],["set",[]],["set",[["uuid","u2"],["uuid","u3"]]],["map",[["k","v"],["n",3]]],true,5]],"headings":["name","one","none","two","map","up","port"]}` + "\n\n" + `{"data":[],"headings":["x"]}`)
	if err != nil || len(tables) != 2 || len(tables[0]) != 1 || len(tables[1]) != 0 {
		t.Fatalf("%v %v", tables, err)
	}
	r := tables[0][0]
	got := []any{r.text("name"), r.text("one"), r.text("none"), r.all("two"), r.pairs("map"), r.text("up"), r.text("port"), r.text("absent"), r.pairs("name")}
	want := []any{"a", "u1", "", []string{"u2", "u3"}, map[string]string{"k": "v", "n": "3"}, "true", "5", "", map[string]string{}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"no JSON", `{"data":[["a"]],"headings":["x","y"]}`} {
		if _, err := parseTables(bad); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
