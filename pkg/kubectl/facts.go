package kubectl

import (
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/errand"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/raft"
)

// facts are what all parts of a cluster say of themselves and of each other. The checks compare them.
type facts struct {
	now    time.Time
	system string
	nodes  []corev1.Node
	// pods are all of the cluster; those of Godwit are in the namespace system.
	pods  []corev1.Pod
	ports []v1alpha1.Port
	moves []v1alpha1.PortMigration
	// settings are those of the ConfigMap godwit-config, lease is the controller's leader's; nil where there is none.
	settings map[string]string
	lease    *coordinationv1.Lease
	// certificates are when those for OVN expire, by Secret; empty without TLS.
	certificates map[string]time.Time

	// ovn: OVN runs as Godwit's pods, and what follows could be asked for.
	ovn      bool
	chassis  []chassis
	bindings map[string]binding
	rows     map[string]logicalPort
	members  []member
	switches map[string]switchOf
	// echoes are what became of packets that each node sent to each other through the tunnels, by sender and receiver; nil where none was to be sent.
	echoes map[string]map[string][]errand.Echo
	// unread is what could not be read, and why.
	unread []verdict
}

// chassis is one of the southbound database.
type chassis struct {
	name string
	// ips are where tunnels to it end.
	ips []string
}

// binding is a Port_Binding.
type binding struct {
	// chassis carries the port; more are additional ones.
	chassis string
	more    []string
	up      bool
}

// logicalPort is a Logical_Switch_Port of a pod, a VM or a node.
type logicalPort struct {
	kind      string
	addresses []string
	options   map[string]string
}

// asked are the chassis that may claim the port.
func (p logicalPort) asked() []string {
	text := p.options[ident.OptionRequestedChassis]
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// member is one of a database's cluster, by what it says itself.
type member struct {
	pod, database string
	raft.Status
	// raw is what it said.
	raw string
}

func parseMember(pod, database, said string) member {
	return member{pod: pod, database: database, Status: raft.Parse(said), raw: said}
}

// led: it knows a leader.
func (m member) led() bool { return m.Leader != "" && m.Leader != "unknown" }

// switchOf is a node's Open vSwitch.
type switchOf struct {
	ids        map[string]string
	interfaces []netInterface
	// controller says why the node's ovn-controller is not well, empty if it is.
	controller string
}

// netInterface is one of a node's Open vSwitch.
type netInterface struct {
	name, kind, trouble string
	ids                 map[string]string
	// remote is where a tunnel ends, tested what BFD says of it; both empty where there is none.
	remote, tested string
	// port is the number that ovs-vswitchd gave it, not positive if none.
	port int
	// sent and received count packets.
	sent, received int
}

// readInterfaces are those of a table Interface.
func readInterfaces(rows []dbRow) []netInterface {
	number := func(text string) int {
		n, err := strconv.Atoi(text)
		if err != nil {
			return 0
		}
		return n
	}
	var out []netInterface
	for _, r := range rows {
		statistics := r.pairs("statistics")
		out = append(out, netInterface{
			name: r.text("name"), kind: r.text("type"), trouble: r.text("error"), ids: r.pairs("external_ids"), remote: r.pairs("options")["remote_ip"],
			tested: r.pairs("bfd_status")["state"], port: number(r.text("ofport")), sent: number(statistics["tx_packets"]), received: number(statistics["rx_packets"]),
		})
	}
	return out
}

// readRows are a table Logical_Switch_Port's, without those of routers.
func readRows(rows []dbRow) map[string]logicalPort {
	out := map[string]logicalPort{}
	for _, r := range rows {
		out[r.text("name")] = logicalPort{kind: r.text("type"), addresses: r.all("addresses"), options: r.pairs("options")}
	}
	return out
}

// readSouth are the tables Chassis, Encap and Port_Binding.
func readSouth(hosts, encaps, ports []dbRow) ([]chassis, map[string]binding) {
	ends, names := map[string]string{}, map[string]string{}
	for _, e := range encaps {
		ends[e.text("_uuid")] = e.text("ip")
	}
	var all []chassis
	for _, h := range hosts {
		c := chassis{name: h.text("name")}
		for _, uuid := range h.all("encaps") {
			c.ips = append(c.ips, ends[uuid])
		}
		names[h.text("_uuid")] = c.name
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b chassis) int { return strings.Compare(a.name, b.name) })
	out := map[string]binding{}
	for _, p := range ports {
		b := binding{chassis: names[p.text("chassis")], up: p.text("up") == "true"}
		for _, uuid := range p.all("additional_chassis") {
			b.more = append(b.more, names[uuid])
		}
		out[p.text("logical_port")] = b
	}
	return all, out
}

// component are the pods of one of Godwit's parts, those that ended left out.
func (f *facts) component(name string) []*corev1.Pod {
	var out []*corev1.Pod
	for i := range f.pods {
		p := &f.pods[i]
		if p.Namespace == f.system && p.Labels[labelName] == "godwit" && p.Labels[labelComponent] == name && !ended(p) {
			out = append(out, p)
		}
	}
	return out
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// moving is a VM's migration that is not over, nil if there is none.
func (f *facts) moving(namespace, vm string) *v1alpha1.PortMigration {
	for i := range f.moves {
		if pm := &f.moves[i]; pm.Namespace == namespace && pm.Spec.VMI.Name == vm && !pm.Status.Over() {
			return pm
		}
	}
	return nil
}

// nodeReady says whether a node is.
func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
