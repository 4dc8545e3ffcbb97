package kubectl

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// The checks of diagnose on Godwit's parts and on the nodes; those on ports are in examine_ports.go. Each takes what all said and returns what is wrong, and what to say if
// nothing is.

const (
	// leaseSlack is by how much the clock of whoever looks may be behind, beside the lease's own time.
	leaseSlack = 15 * time.Second
	// silentLimit is how long a member of a database's cluster may say nothing: the leader hears of each several times a second.
	silentLimit = 20 * time.Second
	// expiresSoon is when a certificate should have been renewed.
	expiresSoon = 20 * 24 * time.Hour
	// oneWay is how many packets a tunnel must have sent for it to say something that none came back.
	oneWay = 20
)

// check is one line of a diagnosis that is well.
type check struct {
	name string
	// look returns what to say if nothing is wrong, empty if there was nothing to look at; and what is wrong.
	look func(*facts) (well string, wrong []verdict)
}

func checks() []check {
	return []check{
		{"components", (*facts).components}, {"versions", (*facts).versions}, {"leader", (*facts).leader}, {"chassis", (*facts).everyChassis}, {"controllers", (*facts).controllers},
		{"mtu", (*facts).mtus}, {"tunnels", (*facts).tunnels}, {"echoes", (*facts).echoing}, {"databases", (*facts).databases}, {"pins", (*facts).pins}, {"rows", (*facts).objectsAndRows}, {"claims", (*facts).claims},
		{"interfaces", (*facts).plugged}, {"certificates", (*facts).expiries}, {"other networks", (*facts).others}, {"unread", (*facts).notRead},
	}
}

// notRead are what could not be looked at.
func (f *facts) notRead() (well string, wrong []verdict) { return "", f.unread }

// everywhere are the parts that every node has, of those that there are.
func (f *facts) everywhere() []string {
	out := []string{"agent"}
	for _, c := range []string{"ovs-node", "ovn-controller"} {
		if len(f.component(c)) > 0 || f.ovn {
			out = append(out, c)
		}
	}
	return out
}

func (f *facts) components() (well string, wrong []verdict) {
	var said []string
	for _, name := range append([]string{"controller", "ovn-central"}, f.everywhere()...) {
		pods := f.component(name)
		if len(pods) == 0 && name == "controller" {
			wrong = append(wrong, verdict{stuck, "no pod of the controller is there: nothing new gets a network", "kubectl -n " + f.system + " get deployments,pods; --system-namespace says where Godwit runs"})
		}
		ready := 0
		for _, p := range pods {
			why := notReady(p)
			if why == "" {
				ready++
				continue
			}
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("pod %s of %s on %s is not ready: %s", p.Name, name, filled(p.Spec.NodeName), why),
				fmt.Sprintf("kubectl -n %s describe pod %s; kubectl -n %s logs %s --all-containers", f.system, p.Name, f.system, p.Name)})
		}
		if len(pods) > 0 {
			said = append(said, fmt.Sprintf("%s %d", name, ready))
		}
	}
	for i := range f.nodes {
		if !nodeReady(&f.nodes[i]) {
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("node %s is not Ready", f.nodes[i].Name), "kubectl describe node " + f.nodes[i].Name + " says why; a node that is dead is fenced before its VMs start elsewhere (docs/maintenance.md)"})
		}
		for _, name := range f.everywhere() {
			if !slices.ContainsFunc(f.component(name), func(p *corev1.Pod) bool { return p.Spec.NodeName == f.nodes[i].Name }) {
				wrong = append(wrong, verdict{stuck, fmt.Sprintf("node %s has no pod of %s", f.nodes[i].Name, name),
					fmt.Sprintf("kubectl -n %s get pods -o wide -l app.kubernetes.io/component=%s; does a taint, or the DaemonSet's nodeSelector, keep it away?", f.system, name)})
			}
		}
	}
	return "all parts are ready: " + strings.Join(said, ", "), wrong
}

// notReady says why a pod is not, empty if it is. One whose container fails has one reason after the other; one that starts has left its reason behind when it has another.
func notReady(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return ""
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		switch waiting := c.State.Waiting; {
		case waiting != nil && slices.Contains([]string{"ContainerCreating", "PodInitializing"}, waiting.Reason):
			return fmt.Sprintf("container %s: %s", c.Name, waiting.Reason)
		case waiting != nil:
			return passing(fmt.Sprintf("container %s: %s", c.Name, waiting.Reason))
		case c.State.Terminated != nil:
			return passing(fmt.Sprintf("container %s ended with %d", c.Name, c.State.Terminated.ExitCode))
		case !c.Ready:
			return passing(fmt.Sprintf("container %s does not pass its probe", c.Name))
		}
	}
	return "it is " + filled(string(p.Status.Phase))
}

// versions: all pods of an image run the same one. The name of an image may be a tag that has moved; its digest tells.
func (f *facts) versions() (well string, wrong []verdict) {
	images := map[string][]string{} // by who shares one
	for part, names := range map[string][]string{"Godwit": {"controller", "agent"}, "OVN": {"ovn-central", "ovs-node", "ovn-controller"}} {
		for _, name := range names {
			for _, p := range f.component(name) {
				for _, c := range p.Status.ContainerStatuses {
					id := c.ImageID
					if id == "" {
						continue // it has not begun
					}
					if !slices.Contains(images[part], id) {
						images[part] = append(images[part], id)
					}
				}
			}
		}
	}
	for _, part := range slices.Sorted(maps.Keys(images)) {
		if n := len(images[part]); n > 1 {
			wrong = append(wrong, verdict{rough, fmt.Sprintf("%s runs in %d versions: %s", part, n, strings.Join(images[part], ", ")),
				"an update is under way, or stopped: kubectl -n " + f.system + " rollout status daemonset,deployment; ovs-node is updated when its pod is deleted (docs/ovn-pods.md)"})
		}
	}
	return "all pods of an image run the same version", wrong
}

func (f *facts) leader() (well string, wrong []verdict) {
	const remedy = "kubectl -n %s get pods -l app.kubernetes.io/component=controller; its log says what it waits for"
	if f.lease == nil || f.lease.Spec.HolderIdentity == nil || *f.lease.Spec.HolderIdentity == "" {
		return "", []verdict{{stuck, "no controller leads", fmt.Sprintf(remedy, f.system)}}
	}
	who := *f.lease.Spec.HolderIdentity
	if node, _, ok := strings.Cut(who, "_"); ok {
		who = "the controller on " + node
	}
	if f.lease.Spec.RenewTime == nil || f.lease.Spec.LeaseDurationSeconds == nil {
		return who + " leads", nil
	}
	ago := f.now.Sub(f.lease.Spec.RenewTime.Time)
	if ago > time.Duration(*f.lease.Spec.LeaseDurationSeconds)*time.Second+leaseSlack {
		return "", []verdict{{stuck, fmt.Sprintf("%s led, and has not said so for %s", who, passing(ago.Round(time.Second).String())), fmt.Sprintf(remedy, f.system) + "; or this machine's clock is ahead"}}
	}
	return who + " leads", nil
}

// everyChassis: each node is one, with the address that it has itself, and no other has that address.
func (f *facts) everyChassis() (well string, wrong []verdict) {
	if !f.ovn {
		return "", nil
	}
	byName, byIP := map[string]chassis{}, map[string][]string{}
	for _, c := range f.chassis {
		byName[c.name] = c
		for _, ip := range c.ips {
			byIP[ip] = append(byIP[ip], c.name)
		}
	}
	for i := range f.nodes {
		n := &f.nodes[i]
		c, ok := byName[n.Name]
		delete(byName, n.Name)
		if !ok {
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("node %s has no Chassis: no pod of it is in the network", n.Name), "docs/runbooks.md, GodwitNodeWithoutChassis"})
			continue
		}
		wrong = append(wrong, f.tunnelEnd(n, c)...)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		wrong = append(wrong, verdict{rough, fmt.Sprintf("Chassis %s is of no Node", name),
			"godwit-controller deletes those of Nodes that were deleted; one that nobody wants: ovn-sbctl chassis-del " + name + ", once its ovn-controller is stopped"})
	}
	for _, ip := range slices.Sorted(maps.Keys(byIP)) {
		if len(byIP[ip]) > 1 {
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("tunnels to %s end at one address, %s", strings.Join(byIP[ip], " and "), ip), "one of them is a leftover, or the address was given twice: compare with kubectl get nodes -o wide"})
		}
	}
	return fmt.Sprintf("all %d nodes are chassis", len(f.nodes)), wrong
}

// tunnelEnd: the address at which a node's tunnels end, in the southbound database, is what the node's Open vSwitch says and, unless the underlay is another network, the Node's.
func (f *facts) tunnelEnd(n *corev1.Node, c chassis) []verdict {
	const remedy = "the agent writes it, from the Node's InternalIP or GODWIT_UNDERLAY: its log; then: does ovn-controller of the node reach the southbound database?"
	var wrong []verdict
	if s, ok := f.switches[n.Name]; ok && !slices.Contains(c.ips, s.ids["ovn-encap-ip"]) {
		wrong = append(wrong, verdict{stuck, fmt.Sprintf("tunnels to %s end at %s by the southbound database, at %s by the node itself", n.Name, strings.Join(c.ips, " "), filled(s.ids["ovn-encap-ip"])), remedy})
	}
	if f.settings == nil || f.settings["GODWIT_UNDERLAY"] != "" {
		return wrong
	}
	var own []string
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			own = append(own, a.Address)
		}
	}
	if !slices.ContainsFunc(c.ips, func(ip string) bool { return slices.Contains(own, ip) }) {
		wrong = append(wrong, verdict{stuck, fmt.Sprintf("tunnels to %s end at %s, which is not the Node's address (%s)", n.Name, strings.Join(c.ips, " "), strings.Join(own, " ")), remedy})
	}
	return wrong
}

// controllers: each node's ovn-controller answers, and is connected.
func (f *facts) controllers() (well string, wrong []verdict) {
	for _, node := range slices.Sorted(maps.Keys(f.switches)) {
		if why := f.switches[node].controller; why != "" {
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("ovn-controller on %s: %s", node, passing(why)),
				"its pod's log says what it waits for; where it hangs: kubectl -n " + f.system + " delete pod, flows stay where they are meanwhile"})
		}
	}
	if len(f.switches) == 0 {
		return "", nil
	}
	return "every ovn-controller is connected to the southbound database", wrong
}

// mtus: all nodes carry packets of the same size, or what is sent by one is lost at another.
func (f *facts) mtus() (well string, wrong []verdict) {
	by := map[int][]string{}
	for i := range f.nodes {
		n := &f.nodes[i]
		mtu, err := strconv.Atoi(n.Annotations[v1alpha1.MTUAnnotation])
		if err != nil {
			wrong = append(wrong, verdict{rough, fmt.Sprintf("node %s does not say which MTU its pods can have", n.Name), "its agent writes the annotation " + v1alpha1.MTUAnnotation + ": is it ready? its log"})
			continue
		}
		by[mtu] = append(by[mtu], n.Name)
	}
	sizes := slices.Sorted(maps.Keys(by))
	if len(sizes) > 1 {
		largest := sizes[len(sizes)-1]
		for _, mtu := range sizes[:len(sizes)-1] {
			wrong = append(wrong, verdict{rough, fmt.Sprintf("pods of %s carry packets of %d bytes, those of %s of %d", strings.Join(by[mtu], ", "), mtu, strings.Join(by[largest], ", "), largest),
				"give the underlay of all nodes the same MTU, or set GODWIT_MTU to the smallest, and make the pods anew"})
		}
	}
	if len(sizes) == 0 {
		return "", wrong
	}
	return fmt.Sprintf("all nodes carry packets of %d bytes", sizes[0]), wrong
}

// tunnels: each node has one to each other, and what it sends there is answered, as far as its counters and BFD tell.
func (f *facts) tunnels() (well string, wrong []verdict) {
	count := 0
	for _, node := range slices.Sorted(maps.Keys(f.switches)) {
		for _, c := range f.chassis {
			if c.name == node {
				continue
			}
			count++
			wrong = append(wrong, tunnelTo(node, c, f.switches[node].interfaces)...)
		}
	}
	if count == 0 {
		return "", wrong
	}
	return fmt.Sprintf("all %d tunnels are there, and none is known to be mute", count), wrong
}

func tunnelTo(node string, to chassis, all []netInterface) []verdict {
	i := slices.IndexFunc(all, func(n netInterface) bool { return n.remote != "" && slices.Contains(to.ips, n.remote) })
	if i < 0 {
		return []verdict{{stuck, fmt.Sprintf("%s has no tunnel to %s (%s)", node, to.name, strings.Join(to.ips, " ")), "docs/runbooks.md, GodwitTunnelMissing"}}
	}
	const firewall = "a firewall between the nodes must let UDP port 6081 through, both ways"
	switch t := all[i]; {
	case t.trouble != "" || t.port <= 0:
		return []verdict{{stuck, fmt.Sprintf("ovs-vswitchd on %s could not make the tunnel %s to %s: %s", node, t.name, to.name, filled(t.trouble)), "its pod's log; docs/runbooks.md, GodwitTunnelMissing"}}
	case t.tested == "down":
		return []verdict{{stuck, fmt.Sprintf("BFD on %s says that the tunnel %s to %s is down", node, t.name, to.name), firewall}}
	case t.sent >= oneWay && t.received == 0:
		return []verdict{{rough, fmt.Sprintf("%s has sent %s packets to %s and received none", node, passing(strconv.Itoa(t.sent)), to.name), firewall}}
	}
	return nil
}

// databases: each has one leader that all members know, and as many members as there are pods.
func (f *facts) databases() (well string, wrong []verdict) {
	by := map[string][]member{}
	for _, m := range f.members {
		by[m.database] = append(by[m.database], m)
	}
	want := len(f.component("ovn-central"))
	var said []string
	for _, name := range slices.Sorted(maps.Keys(by)) {
		leader, faults := raftOf(name, by[name], want)
		wrong = append(wrong, faults...)
		said = append(said, fmt.Sprintf("%s is led by %s", name, leader))
	}
	if len(by) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s; all %d members know it", strings.Join(said, ", "), want), wrong
}

// raftOf looks at one database's.
func raftOf(name string, members []member, want int) (leader string, wrong []verdict) {
	for _, m := range members {
		switch {
		case m.Failed:
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("%s at %s could not write to its disk, and has given up", name, m.pod), "make room in /var/lib/godwit/ovn of its node: it starts again by itself (docs/ovn-pods.md)"})
		case !m.Member:
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("%s at %s has not joined its cluster", name, m.pod), "the logs of the pod's containers; are raft's ports (6643, 6644) open between the nodes?"})
		case !m.led():
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("%s at %s knows no leader", name, m.pod), "docs/runbooks.md, GodwitRaftWithoutLeader"})
		}
		if m.Leads() {
			if leader != "" {
				wrong = append(wrong, verdict{stuck, fmt.Sprintf("%s is led by %s and by %s", name, leader, m.pod), "members are cut off from one another: are raft's ports (6643, 6644) open between the nodes?"})
			}
			leader = m.pod
			wrong = append(wrong, silentPeers(name, m)...)
		}
		if m.Member && len(m.Servers) != want {
			wrong = append(wrong, verdict{rough, fmt.Sprintf("%s has %d members by %s, and %d pods", name, len(m.Servers), m.pod, want), "container members removes those that are gone, and says so in its log; kubectl ovn db status"})
		}
	}
	if leader == "" {
		wrong = append(wrong, verdict{stuck, name + " has no leader: nobody can write to it", "docs/runbooks.md, GodwitRaftWithoutLeader"})
	}
	return leader, wrong
}

func silentPeers(name string, leader member) []verdict {
	var wrong []verdict
	for _, p := range leader.Servers {
		if !p.Self && p.Silent > silentLimit {
			wrong = append(wrong, verdict{rough, fmt.Sprintf("%s has not heard of its member %s for %s", name, p.Address, passing(p.Silent.Round(time.Second).String())), "docs/runbooks.md, GodwitRaftMemberAway"})
		}
	}
	return wrong
}

func (f *facts) expiries() (well string, wrong []verdict) {
	first := ""
	for _, name := range slices.Sorted(maps.Keys(f.certificates)) {
		left := f.certificates[name].Sub(f.now)
		days := int(left.Hours() / 24)
		switch {
		case left <= 0:
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("the certificate in Secret %s expired on %s", name, f.certificates[name].UTC().Format(time.DateOnly)), "docs/runbooks.md, GodwitCertificateExpires"})
		case left < expiresSoon:
			wrong = append(wrong, verdict{rough, fmt.Sprintf("the certificate in Secret %s has %d days left, and was not renewed", name, days), "docs/runbooks.md, GodwitCertificateExpires"})
		case first == "" || f.certificates[name].Before(f.certificates[first]):
			first = name
		}
	}
	if first == "" {
		return "", wrong
	}
	return fmt.Sprintf("the first certificate to expire, in Secret %s, has %d days left", first, int(f.certificates[first].Sub(f.now).Hours()/24)), wrong
}

// networks are other CNIs: how their pods on each node are called, and what they write on Nodes.
func networks() map[string][]string {
	return map[string][]string{
		"Calico": {"calico-node", "projectcalico.org/"}, "Canal": {"canal", ""}, "Cilium": {"cilium", "network.cilium.io/"}, "Flannel": {"kube-flannel", "flannel.alpha.coreos.com/"},
		"Weave": {"weave-net", ""}, "Antrea": {"antrea-agent", "node.antrea.io/"}, "Kube-OVN": {"kube-ovn-cni", "ovn.kubernetes.io/"}, "OVN-Kubernetes": {"ovnkube-node", "k8s.ovn.org/"},
	}
}

// others: no other CNI runs, or has left something; and nobody else serves Services where the agents do.
func (f *facts) others() (well string, wrong []verdict) {
	for _, name := range slices.Sorted(maps.Keys(networks())) {
		signs := networks()[name]
		if i := slices.IndexFunc(f.pods, func(p corev1.Pod) bool { return daemonOf(&p, signs[0]) && !ended(&p) }); i >= 0 {
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("%s runs too: pod %s/%s", name, f.pods[i].Namespace, f.pods[i].Name),
				"remove it, and its configuration from /etc/cni/net.d of each node: the runtime takes the first one there"})
			continue
		}
		for i := range f.nodes {
			for key := range f.nodes[i].Annotations {
				if signs[1] != "" && strings.HasPrefix(key, signs[1]) {
					wrong = append(wrong, verdict{rough, fmt.Sprintf("%s has left the annotation %s on node %s", name, key, f.nodes[i].Name),
						"is its configuration still in /etc/cni/net.d there, its chains in nft list ruleset? the agent's log names what is in the way (pre-flight); then remove the annotation"})
				}
			}
		}
	}
	if i := slices.IndexFunc(f.pods, func(p corev1.Pod) bool { return daemonOf(&p, "kube-proxy") && !ended(&p) }); i >= 0 && f.serves() {
		wrong = append(wrong, verdict{rough, fmt.Sprintf("kube-proxy serves Services (pod %s/%s), and so do the agents", f.pods[i].Namespace, f.pods[i].Name), "remove kube-proxy, or start agents and controllers with --services=false"})
	}
	return "no other network is in the way", wrong
}

// daemonOf: a pod of a DaemonSet, or of the kubelet's own, of that name.
func daemonOf(p *corev1.Pod, name string) bool {
	for _, o := range p.OwnerReferences {
		if (o.Kind == "DaemonSet" || o.Kind == "Node") && (o.Name == name || strings.HasPrefix(p.Name, name+"-")) {
			return true
		}
	}
	return false
}

// serves: the agents do what kube-proxy does.
func (f *facts) serves() bool {
	for _, p := range f.component("agent") {
		for i := range p.Spec.Containers {
			if slices.Contains(p.Spec.Containers[i].Args, "--services=false") {
				return false
			}
		}
	}
	return true
}
