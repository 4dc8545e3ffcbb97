package kubectl

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/errand"
)

// grade is what a check comes to.
type grade string

const (
	fine grade = "ok"
	// rough: the VM moves, and somebody notices.
	rough grade = "warn"
	// stuck: it does not move.
	stuck grade = "fail"
)

// verdict is one line of a pre-flight.
type verdict struct {
	grade grade
	// finding says what was found, remedy what to do about it; empty if there is nothing to do.
	finding, remedy string
}

// preflight is what is known of a VM before it moves.
type preflight struct {
	now   time.Time
	vmi   *kubevirtv1.VirtualMachineInstance
	ports []v1alpha1.Port
	// mtu is the largest of the VM's interfaces', as its launcher was told: it stays what it was when the VM started. 0 if nobody was told.
	mtu int
	// last is the VM's last migration, nil if it never moved.
	last *v1alpha1.PortMigration
	// nodes are all of the cluster; agents are the nodes on which an agent of Godwit is ready.
	nodes    []corev1.Node
	agents   map[string]bool
	services []corev1.Service
	// echoes are what became of packets that the VM's node has sent to others through the tunnels, by node; nil where none was to be sent. unsent is why none could be.
	echoes map[string][]errand.Echo
	unsent error
	// ovn are the releases of OVN's daemons; nil where nobody was to be asked.
	ovn       *ovnReleases
	isolation isolation
}

// judge goes through what makes a move impossible, or noticed.
func (p preflight) judge() diagnosis {
	d := diagnosis{Time: p.now}
	for _, c := range []struct {
		name  string
		found []verdict
	}{
		{"running", []verdict{p.runs()}},
		{"migratable", []verdict{p.migratable()}},
		{"bindings", p.bindings()},
		{"ports", p.attached()},
		{"migrations", []verdict{p.resting()}},
		{"nodes", p.destinations()},
		{"tunnels", p.tunnels()},
		{"ovn", p.releases()},
		{"agents", p.unheard()},
		{"policies", []verdict{p.isolated()}},
		{"services", p.localServices()},
		{"history", p.history()},
	} {
		for _, v := range c.found {
			d.Checks = append(d.Checks, v.of(c.name))
		}
	}
	d.count()
	return d
}

func (p preflight) runs() verdict {
	if p.vmi.Status.Phase != kubevirtv1.Running {
		return verdict{stuck, "the VM is " + filled(string(p.vmi.Status.Phase)), "start it: virtctl start " + p.vmi.Name}
	}
	return verdict{grade: fine, finding: "the VM runs on " + p.vmi.Status.NodeName}
}

func (p preflight) migratable() verdict {
	for _, c := range p.vmi.Status.Conditions {
		if c.Type != kubevirtv1.VirtualMachineInstanceIsMigratable {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return verdict{grade: fine, finding: "KubeVirt can migrate it live"}
		}
		return verdict{stuck, fmt.Sprintf("KubeVirt cannot migrate it live: %s: %s", c.Reason, c.Message), "change what it names in the VM, and restart it"}
	}
	return verdict{stuck, "KubeVirt does not say whether it can migrate it (condition LiveMigratable)", "wait until the VM runs, or look at virt-handler on its node"}
}

// bindings: how each NIC is bound decides what of its connections lives on.
func (p preflight) bindings() []verdict {
	_, allowed := p.vmi.Annotations[kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation]
	var out []verdict
	for i := range p.vmi.Spec.Domain.Devices.Interfaces {
		nic := &p.vmi.Spec.Domain.Devices.Interfaces[i]
		switch {
		case nic.Bridge != nil && p.onPodNetwork(nic.Name) && !allowed:
			out = append(out, verdict{stuck, fmt.Sprintf("NIC %s is bound by bridge, and the VM lacks the annotation %s", nic.Name, kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation),
				"set it in the VM's template, and restart the VM"})
		case nic.Masquerade != nil:
			out = append(out, verdict{rough, fmt.Sprintf("NIC %s is bound by masquerade: its launcher pod translates, whose connection tracking stays behind", nic.Name),
				"bind it by bridge: connections then live on"})
		case nic.SRIOV != nil:
			out = append(out, verdict{rough, fmt.Sprintf("NIC %s is SR-IOV: it is unplugged and plugged again, and Godwit has no part in it", nic.Name), "expect an interruption there"})
		default:
			but := ""
			if p.ovn != nil && !p.handOver() {
				but = ", but those that it has open to a Service's address" // their translation stays behind
			}
			out = append(out, verdict{grade: fine, finding: fmt.Sprintf("NIC %s keeps its addresses and its connections%s", nic.Name, but)})
		}
	}
	return out
}

func (p preflight) onPodNetwork(nic string) bool {
	i := slices.IndexFunc(p.vmi.Spec.Networks, func(n kubevirtv1.Network) bool { return n.Name == nic })
	return i >= 0 && p.vmi.Spec.Networks[i].Pod != nil
}

// attached: every Port is ready, and where the VM is.
func (p preflight) attached() []verdict {
	if len(p.ports) == 0 {
		return []verdict{{stuck, "the VM has no Port: Godwit does not know it", "is godwit-controller running? kubectl get ports -n " + p.vmi.Namespace}}
	}
	var out []verdict
	for i := range p.ports {
		port := &p.ports[i]
		ready := meta.FindStatusCondition(port.Status.Conditions, v1alpha1.ConditionReady)
		switch {
		case ready == nil || ready.Status != metav1.ConditionTrue:
			message := "godwit-controller has not looked at it"
			if ready != nil {
				message = ready.Reason + ": " + ready.Message
			}
			out = append(out, verdict{stuck, fmt.Sprintf("Port %s is not ready: %s", port.Name, message), "kubectl describe port " + port.Name})
		case port.Status.Node != p.vmi.Status.NodeName:
			out = append(out, verdict{stuck, fmt.Sprintf("Port %s is %s on node %s, the VM on %s", port.Name, filled(string(port.Status.Phase)), filled(port.Status.Node), filled(p.vmi.Status.NodeName)),
				"does ovn-controller run there, and reach the southbound database? docs/runbooks.md, GodwitPortWithoutChassis"})
		default:
			out = append(out, verdict{grade: fine, finding: fmt.Sprintf("Port %s is attached, with %s", port.Name, strings.Join(port.Status.IPs, " "))})
		}
	}
	return out
}

// resting: a second migration has to wait for the first.
func (p preflight) resting() verdict {
	if p.last != nil && !p.last.Status.Over() {
		return verdict{stuck, fmt.Sprintf("it is on its way from %s to %s", p.last.Spec.Source.Node, p.last.Spec.Target.Node), "wait for it: kubectl ovn migrations " + p.vmi.Name + " -w"}
	}
	return verdict{grade: fine, finding: "no migration of it is under way"}
}

// destinations are the nodes that it may move to, as far as their own state and the VM's selector say; what fits there the scheduler knows.
func (p preflight) destinations() []verdict {
	var candidates, reasons []string
	out := []verdict{}
	for i := range p.nodes {
		n := &p.nodes[i]
		if n.Name == p.vmi.Status.NodeName {
			continue
		}
		if why := p.unfit(n); why != "" {
			reasons = append(reasons, n.Name+" "+why)
			continue
		}
		candidates = append(candidates, n.Name)
		if mtu, err := strconv.Atoi(n.Annotations[v1alpha1.MTUAnnotation]); err == nil && mtu < p.mtu {
			out = append(out, verdict{rough, fmt.Sprintf("%s carries packets of %d bytes, the VM has an MTU of %d", n.Name, mtu, p.mtu), "raise the MTU of the node's underlay, or lower spec.mtu of the Subnet and restart its VMs"})
		}
	}
	if len(candidates) == 0 {
		return append(out, verdict{stuck, "no other node can take it: " + filled(strings.Join(reasons, "; ")), "uncordon or add one"})
	}
	return append(out, verdict{grade: fine, finding: "it can move to " + strings.Join(candidates, ", ")})
}

// candidates are the nodes that can take it.
func (p preflight) candidates() []*corev1.Node {
	var out []*corev1.Node
	for i := range p.nodes {
		if n := &p.nodes[i]; n.Name != p.vmi.Status.NodeName && p.unfit(n) == "" {
			out = append(out, n)
		}
	}
	return out
}

// toldMTU is the largest MTU that launchers of a VMI were told, 0 if none was told any.
func toldMTU(pods []corev1.Pod, vmi *kubevirtv1.VirtualMachineInstance) (mtu int) {
	for i := range pods {
		id, err := v1alpha1.ParseIdentity(pods[i].Annotations[v1alpha1.IdentityAnnotation])
		if err != nil || ended(&pods[i]) || id.PodUID != string(pods[i].UID) || id.VMI == nil || id.VMI.UID != string(vmi.UID) {
			continue
		}
		mtu = max(mtu, id.MTU)
		for _, nic := range id.NICs {
			mtu = max(mtu, nic.MTU)
		}
	}
	return mtu
}

// unfit says why a node cannot take the VM, empty if it can.
func (p preflight) unfit(n *corev1.Node) string {
	switch {
	case !nodeReady(n):
		return "is not Ready"
	case n.Spec.Unschedulable:
		return "is cordoned"
	case !p.agents[n.Name]:
		return "has no agent of Godwit that is ready"
	case !labels.SelectorFromSet(p.vmi.Spec.NodeSelector).Matches(labels.Set(n.Labels)):
		return "does not match the VM's nodeSelector"
	}
	return ""
}

// localServices: who came by a node may come only while the VM is there.
func (p preflight) localServices() []verdict {
	var out []verdict
	for i := range p.services {
		s := &p.services[i]
		if len(s.Spec.Selector) == 0 || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(p.vmi.Labels)) {
			continue
		}
		if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
			out = append(out, verdict{rough, fmt.Sprintf("Service %s has externalTrafficPolicy Local: who comes by %s does not reach the VM there any more", s.Name, filled(p.vmi.Status.NodeName)),
				"let a load balancer follow healthCheckNodePort, or use Cluster"})
		}
		if local := s.Spec.InternalTrafficPolicy; local != nil && *local == corev1.ServiceInternalTrafficPolicyLocal {
			out = append(out, verdict{rough, fmt.Sprintf("Service %s has internalTrafficPolicy Local: pods of %s do not reach the VM by it any more", s.Name, filled(p.vmi.Status.NodeName)), "use Cluster"})
		}
	}
	if len(out) == 0 {
		return []verdict{{grade: fine, finding: "no Service leads to it on its node alone"}}
	}
	return out
}

func (p preflight) history() []verdict {
	switch {
	case p.last == nil:
		return []verdict{{grade: fine, finding: "it has not moved before"}}
	case !p.last.Status.Over():
		return nil // resting has told
	case p.last.Status.Result == v1alpha1.MigrationFailed:
		return []verdict{{rough, fmt.Sprintf("its last migration, to %s, failed: %s", p.last.Spec.Target.Node, p.last.Status.Reason), "kubectl ovn migration show " + p.vmi.Name}}
	}
	return []verdict{{grade: fine, finding: fmt.Sprintf("its last migration was interrupted for %s", interruption(p.last.Status.Interruption))}}
}
