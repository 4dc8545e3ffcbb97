package kubectl

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// Remedies of what is the controller's, ovn-northd's and a node's to put right.
const (
	remedyPin        = "the controller asks for the right one when it looks at the VM or pod again; its log says why it cannot. docs/runbooks.md, GodwitStalePin"
	remedyRow        = "the controller writes it: its log, and kubectl describe of the object"
	remedyNorthd     = "does an ovn-northd work? kubectl -n %s logs -l app.kubernetes.io/component=ovn-central -c northd"
	remedyClaim      = "does ovn-controller run on that node, and is it connected? docs/runbooks.md, GodwitPortWithoutChassis"
	remedyUnplugged  = "delete the pod, so that it is attached anew; the agent's log on the node says what became of the interface"
	remedyLeftoverIf = "the agent removes what no pod of the node has, within five minutes: its log says why it does not"
)

// attachment is an interface that a pod should have.
type attachment struct {
	pod  *corev1.Pod
	port string
	// addresses are what the row should say, empty where the pod alone does not tell: of a VM.
	addresses string
	// here: the pod runs, and may be attached where it is.
	here bool
}

// attachments are those of all pods that have an identity.
func (f *facts) attachments() []attachment {
	var out []attachment
	for i := range f.pods {
		p := &f.pods[i]
		id, err := v1alpha1.ParseIdentity(p.Annotations[v1alpha1.IdentityAnnotation])
		if err != nil || p.Spec.HostNetwork || ended(p) || p.Spec.NodeName == "" || id.PodUID != string(p.UID) {
			continue
		}
		here := p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
		if id.VMI == nil {
			out = append(out, attachment{p, string(ident.PodPort(p.Namespace, p.Name, ident.DefaultNetwork)), topology.Addresses(id.MAC, id.IPs), here})
		} else {
			here = here && id.Attach != nil && id.Attach.Chassis == p.Spec.NodeName && f.moving(p.Namespace, id.VMI.Name) == nil
			out = append(out, attachment{p, string(ident.VMPort(p.Namespace, id.VMI.Name, ident.DefaultNetwork)), "", here})
		}
		for _, nic := range id.NICs {
			if id.VMI == nil {
				out = append(out, attachment{p, string(ident.PodPort(p.Namespace, p.Name, nic.Interface)), topology.Addresses(nic.MAC, nic.IPs), here})
			} else {
				out = append(out, attachment{p, string(ident.VMPort(p.Namespace, id.VMI.Name, nic.Network)), "", here})
			}
		}
	}
	return out
}

// pins: each row asks for the chassis that carries its port, and for no other unless a migration is under way.
func (f *facts) pins() (well string, wrong []verdict) {
	if len(f.rows) == 0 {
		return "", nil
	}
	carriers := map[string]string{} // by port, the node that should carry it
	for _, a := range f.attachments() {
		if a.here {
			carriers[a.port] = a.pod.Spec.NodeName
		}
	}
	for i := range f.nodes {
		carriers[string(ident.NodePort(f.nodes[i].Name))] = f.nodes[i].Name
	}
	for _, name := range slices.Sorted(maps.Keys(f.rows)) {
		r := f.rows[name]
		if r.kind != "" {
			continue // a router's
		}
		if why := f.misplaced(name, r, carriers[name]); why != "" {
			wrong = append(wrong, verdict{stuck, "port " + name + " " + why, remedyPin})
		}
	}
	return "every port asks for the node that carries it", wrong
}

// misplaced says what is wrong with the chassis that a row asks for, empty if nothing is.
func (f *facts) misplaced(name string, r logicalPort, carrier string) string {
	asked := r.asked()
	text := strings.Join(asked, ",")
	if len(asked) == 0 {
		return "asks for no node: any may claim it"
	}
	for _, c := range asked {
		if c != string(ident.NoChassis) && f.chassis != nil && !slices.ContainsFunc(f.chassis, func(have chassis) bool { return have.name == c }) {
			return "asks for " + c + ", which is no chassis"
		}
	}
	namespace, vm, _, isVM := ident.ParseVMPort(ident.PortName(name))
	if isVM && f.moving(namespace, vm) != nil {
		return ""
	}
	switch {
	case len(asked) > 1:
		return "asks for " + text + ", and no migration moves it"
	case r.options[ident.OptionActivationStrategy] != "":
		return "waits for an announcement (activation-strategy), and no migration moves it"
	case carrier != "" && text != carrier:
		return "asks for " + text + ", and what it is of runs on " + carrier
	}
	return ""
}

// objectsAndRows: what the API has of pods and Ports, the northbound database has too, and nothing else.
func (f *facts) objectsAndRows() (well string, wrong []verdict) {
	if f.rows == nil {
		return "", nil
	}
	known := map[string]bool{}
	for i := range f.nodes {
		known[string(ident.NodePort(f.nodes[i].Name))] = true
	}
	for _, a := range f.attachments() {
		known[a.port] = true
		r, ok := f.rows[a.port]
		switch {
		case !ok:
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("pod %s/%s has no row %s in the northbound database", a.pod.Namespace, a.pod.Name, a.port), remedyRow})
		case a.addresses != "" && !slices.Contains(r.addresses, a.addresses):
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("pod %s/%s has the addresses %q by its annotation, %q by the northbound database", a.pod.Namespace, a.pod.Name, a.addresses, strings.Join(r.addresses, " ")), remedyRow})
		}
	}
	for i := range f.ports {
		p := &f.ports[i]
		name := string(ident.VMPort(p.Namespace, p.Spec.Target.Name, p.Spec.Target.Network))
		known[name] = true
		if len(p.Status.IPs) > 0 && !taken(p) {
			wrong = append(wrong, f.portRow(p, name)...)
		}
	}
	for i := range f.pods {
		if p := &f.pods[i]; p.Status.Phase == corev1.PodRunning && !p.Spec.HostNetwork && p.Annotations[v1alpha1.IdentityAnnotation] == "" {
			wrong = append(wrong, verdict{rough, fmt.Sprintf("pod %s/%s runs and has no identity: it is in another network, or is from before Godwit", p.Namespace, p.Name), "delete it, so that it is made anew"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.rows)) {
		if !known[name] && f.rows[name].kind == "" && strings.Contains(name, "/") && !f.exists(name) {
			wrong = append(wrong, verdict{rough, "row " + name + " of the northbound database is of no pod, Port or Node", "the controller deletes those of objects that are gone, at its start too: its log. Without godwit.dev/owner in external_ids it is somebody else's"})
		}
	}
	return fmt.Sprintf("the API and the northbound database agree on %d ports", len(known)), wrong
}

// exists: the row's pod is there, though it has no identity, or has ended.
func (f *facts) exists(name string) bool {
	namespace, pod, _, ok := ident.ParsePodPort(ident.PortName(name))
	return ok && slices.ContainsFunc(f.pods, func(p corev1.Pod) bool { return p.Namespace == namespace && p.Name == pod })
}

func (f *facts) portRow(p *v1alpha1.Port, name string) []verdict {
	r, ok := f.rows[name]
	if !ok {
		return []verdict{{stuck, fmt.Sprintf("Port %s/%s has no row %s in the northbound database", p.Namespace, p.Name, name), remedyRow}}
	}
	have := strings.Fields(strings.Join(r.addresses, " "))
	want := []string{p.Status.MAC}
	for _, ip := range p.Status.IPs {
		bare, _, _ := strings.Cut(ip, "/")
		want = append(want, bare)
	}
	for _, w := range want {
		if !slices.Contains(have, w) {
			return []verdict{{stuck, fmt.Sprintf("Port %s/%s has %s by its status, %q by the northbound database", p.Namespace, p.Name, strings.Join(want, " "), strings.Join(have, " ")), remedyRow}}
		}
	}
	return nil
}

// claims: the southbound database has a binding of each row, and the ports of what runs are claimed where they are asked for.
func (f *facts) claims() (well string, wrong []verdict) {
	if f.rows == nil || f.bindings == nil {
		return "", nil
	}
	count := 0
	for _, name := range slices.Sorted(maps.Keys(f.rows)) {
		if _, ok := f.bindings[name]; !ok {
			wrong = append(wrong, verdict{stuck, "the southbound database has no Port_Binding of " + name, fmt.Sprintf(remedyNorthd, f.system)})
		}
	}
	for _, a := range f.attachments() {
		r, okRow := f.rows[a.port]
		b, okBinding := f.bindings[a.port]
		if !a.here || !okRow || !okBinding {
			continue // said already
		}
		count++
		switch asked := r.asked(); {
		case b.chassis == "":
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("port %s of pod %s/%s is claimed by no node, and asks for %s", a.port, a.pod.Namespace, a.pod.Name, strings.Join(asked, ",")), remedyClaim})
		case !slices.Contains(asked, b.chassis):
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("port %s is claimed by %s, and asks for %s", a.port, b.chassis, strings.Join(asked, ",")), "docs/runbooks.md, GodwitForbiddenClaim"})
		case !b.up:
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("port %s is claimed by %s and not up", a.port, b.chassis), remedyClaim})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.bindings)) {
		kind, _, _ := strings.Cut(name, "/")
		if _, ok := f.rows[name]; !ok && slices.Contains([]string{"pod", "vm", "node"}, kind) {
			wrong = append(wrong, verdict{rough, "the southbound database has a Port_Binding of " + name + ", the northbound one has no such row", fmt.Sprintf(remedyNorthd, f.system)})
		}
	}
	return fmt.Sprintf("all %d ports of what runs are claimed where they are asked for", count), wrong
}

// plugged: each pod that runs has its interface on its node, which OVN has installed; and no node has an interface of something that is not there.
func (f *facts) plugged() (well string, wrong []verdict) {
	if len(f.switches) == 0 {
		return "", nil
	}
	count := 0
	belongs := map[string]bool{} // node and port
	for _, a := range f.attachments() {
		node := a.pod.Spec.NodeName
		belongs[node+" "+a.port] = true
		s, ok := f.switches[node]
		if !a.here || !ok {
			continue
		}
		count++
		if why := unplugged(s.interfaces, a.port); why != "" {
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("pod %s/%s on %s: %s", a.pod.Namespace, a.pod.Name, node, why), remedyUnplugged})
		}
	}
	for _, node := range slices.Sorted(maps.Keys(f.switches)) {
		for _, i := range f.switches[node].interfaces {
			id := i.ids[ident.KeyIfaceID]
			if id == "" || id == string(ident.NodePort(node)) || belongs[node+" "+id] {
				continue
			}
			wrong = append(wrong, verdict{rough, fmt.Sprintf("interface %s on %s is of port %s, which no pod of the node has", i.name, node, id), remedyLeftoverIf})
		}
		if why := unplugged(f.switches[node].interfaces, string(ident.NodePort(node))); why != "" {
			wrong = append(wrong, verdict{stuck, fmt.Sprintf("%s on %s: %s", ident.GatewayInterface, node, why), "the agent makes it: its log on the node"})
		}
	}
	return fmt.Sprintf("all %d interfaces of what runs are installed", count), wrong
}

// unplugged says what is wrong with a port's interface on a node, empty if nothing is.
func unplugged(all []netInterface, port string) string {
	i := slices.IndexFunc(all, func(n netInterface) bool { return n.ids[ident.KeyIfaceID] == port })
	if i < 0 {
		return "Open vSwitch has no interface of port " + port
	}
	switch n := all[i]; {
	case n.trouble != "" || n.port <= 0:
		return fmt.Sprintf("ovs-vswitchd could not take interface %s of port %s: %s", n.name, port, filled(n.trouble))
	case n.ids["ovn-installed"] != "true":
		return fmt.Sprintf("OVN has not installed the flows of interface %s, port %s", n.name, port)
	}
	return ""
}
