package kubevirt

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
	"github.com/godwit-cni/godwit/test/lab/guest"
)

const (
	// computeContainer is the name of the launcher's container, as in KubeVirt.
	computeContainer = "compute"
	// maxLabel is the length of a label and of a host name.
	maxLabel = 63
	// minGrace is added to a VMI's own grace period: the launcher has to end as well.
	minGrace = 30
	// maxMemoryMiB is the most that a guest gets: many run on one machine, and its kernel needs no more.
	maxMemoryMiB = 256
	mebibyte     = 1 << 20
	// noImage exists nowhere.
	noImage = "registry.invalid/there-is-no-such-image:v1"
	// idleImage is of containers that do nothing; every node of a lab has it.
	idleImage = "docker.io/godwitcni/lab-busybox:1"
)

// idleCommand does nothing until it is asked to end.
var idleCommand = []string{"/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"}

// launcherPod renders the VMI's launcher pod. A migration's target is made by targetPod.
func (w *world) launcherPod() *corev1.Pod {
	vmi := w.vmi
	grace := int64(minGrace)
	if s := vmi.Spec.TerminationGracePeriodSeconds; s != nil {
		grace += *s
	} else {
		grace *= 2
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "virt-launcher-" + vmi.Name + "-", Namespace: vmi.Namespace, Labels: map[string]string{}, Annotations: map[string]string{},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vmi, kubevirtv1.VirtualMachineInstanceGroupVersionKind)},
		},
		Spec: corev1.PodSpec{
			Hostname: hostname(vmi), Subdomain: vmi.Spec.Subdomain, RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace,
			NodeSelector: maps.Clone(vmi.Spec.NodeSelector), Affinity: vmi.Spec.Affinity.DeepCopy(), Tolerations: vmi.Spec.Tolerations,
			ReadinessGates: []corev1.PodReadinessGate{{ConditionType: kubevirtv1.VirtualMachineUnpaused}},
		},
	}
	maps.Copy(pod.Labels, vmi.Labels)
	maps.Copy(pod.Labels, map[string]string{
		kubevirtv1.AppLabel: launcherLabel, kubevirtv1.CreatedByLabel: string(vmi.UID), kubevirtv1.DeprecatedVirtualMachineNameLabel: hostname(vmi),
		kubevirtv1.VirtualMachineInstanceIDLabel: cut(vmi.Name, string(vmi.UID)),
	})
	maps.Copy(pod.Annotations, vmi.Annotations)
	for _, a := range append(observedAnnotations, corev1.LastAppliedConfigAnnotation, HoldAnnotation, DelayAnnotation, FailAnnotation, PauseAnnotation) {
		delete(pod.Annotations, a)
	}
	maps.Copy(pod.Annotations, map[string]string{
		kubevirtv1.DomainAnnotation: vmi.Name, kubevirtv1.MigrationTransportUnixAnnotation: "true", "kubectl.kubernetes.io/default-container": computeContainer,
		"descheduler.alpha.kubernetes.io/request-evict-only": "", kubevirtv1.MemoryOverheadAnnotationBytes: "281018368",
	})
	if networks := networksAnnotation(vmi); networks != "" {
		pod.Annotations[nad.Annotation] = networks
	}
	w.engine.domains.launchers.Decorate(pod, w.domain().MemoryMiB)
	if knobsOf(vmi).has(SidecarAnnotation) {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "sidecar", Image: idleImage, ImagePullPolicy: corev1.PullNever, Command: idleCommand})
	}
	return pod
}

// targetPod renders the pod that a migration takes the VM to: not where the VM's other launchers are.
func (w *world) targetPod(m *kubevirtv1.VirtualMachineInstanceMigration) *corev1.Pod {
	pod := w.launcherPod()
	pod.Labels[kubevirtv1.MigrationJobLabel] = string(m.UID)
	pod.Annotations[kubevirtv1.MigrationJobNameAnnotation] = m.Name
	if pod.Spec.Affinity == nil {
		pod.Spec.Affinity = &corev1.Affinity{}
	}
	if pod.Spec.Affinity.PodAntiAffinity == nil {
		pod.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{}
	}
	anti := pod.Spec.Affinity.PodAntiAffinity
	anti.RequiredDuringSchedulingIgnoredDuringExecution = append(anti.RequiredDuringSchedulingIgnoredDuringExecution, corev1.PodAffinityTerm{
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{kubevirtv1.CreatedByLabel: string(w.vmi.UID)}},
		TopologyKey:   corev1.LabelHostname,
	})
	selector := maps.Clone(m.Spec.AddedNodeSelector)
	if selector == nil {
		selector = map[string]string{}
	}
	maps.Copy(selector, pod.Spec.NodeSelector) // the VM's own restrict more than the migration's
	switch knobsOf(m, w.vmi).fault() {
	case FaultUnschedulable:
		selector["lab.godwit.dev/no-node-has"] = "this-label"
	case FaultTargetStuck:
		pod.Spec.Containers[0].Image, pod.Spec.Containers[0].ImagePullPolicy = noImage, corev1.PullNever
	default:
	}
	pod.Spec.NodeSelector = selector
	return pod
}

// attachmentPod renders the pod that holds hotplugged volumes on the target's node. It is owned by the target, and no launcher.
func (w *world) attachmentPod(m *kubevirtv1.VirtualMachineInstanceMigration, target *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "hp-volume-", Namespace: m.Namespace,
			Labels:          map[string]string{kubevirtv1.AppLabel: hotplugLabel, kubevirtv1.MigrationJobLabel: string(m.UID)},
			Annotations:     map[string]string{vmiAnnotation: w.key.Name, kubevirtv1.MigrationJobNameAnnotation: m.Name},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(target, corev1.SchemeGroupVersion.WithKind("Pod"))},
		},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{target.Spec.NodeName}},
				}}},
			}}},
			Containers: []corev1.Container{{
				Name: hotplugLabel, Image: idleImage, ImagePullPolicy: corev1.PullNever, Command: idleCommand,
			}},
		},
	}
}

// hostname is the guest's and the pod's: the VMI's name up to the first dot, cut, unless the VMI names another. Several VMs may share it.
func hostname(vmi *kubevirtv1.VirtualMachineInstance) string {
	if vmi.Spec.Hostname != "" {
		return vmi.Spec.Hostname
	}
	name, _, _ := strings.Cut(vmi.Name, ".")
	if len(name) > maxLabel {
		name = name[:maxLabel]
	}
	return strings.TrimRight(name, "-")
}

// cut makes a name a label that is unique still.
func cut(name, uid string) string {
	if len(name) <= maxLabel {
		return name
	}
	id, _, _ := strings.Cut(uid, "-")
	return strings.TrimRight(name[:maxLabel-len(id)-1], "-.") + "-" + id
}

// nicsOf are the guest's interfaces. Those on second networks have links with hashed names.
func nicsOf(vmi *kubevirtv1.VirtualMachineInstance) []guest.NIC {
	var nics []guest.NIC
	for _, f := range vmi.Spec.Domain.Devices.Interfaces {
		n := guest.NIC{Name: f.Name, Link: ident.FirstInterface, Binding: guest.Bridge, MAC: f.MacAddress}
		if slices.ContainsFunc(secondNetworks(vmi), func(s kubevirtv1.Network) bool { return s.Name == f.Name }) {
			n.Link = ident.LauncherInterface(f.Name)
		}
		if f.Masquerade != nil {
			n.Binding = guest.Masquerade
		}
		nics = append(nics, n)
	}
	return nics
}

// secondNetworks are the networks that Multus attaches the launcher to besides the first.
func secondNetworks(vmi *kubevirtv1.VirtualMachineInstance) []kubevirtv1.Network {
	return slices.DeleteFunc(slices.Clone(vmi.Spec.Networks), func(n kubevirtv1.Network) bool { return n.Multus == nil || n.Multus.Default })
}

// networksAnnotation is what Multus is told of a launcher: for each second network the definition, and the name of the link, which follows from the network's.
func networksAnnotation(vmi *kubevirtv1.VirtualMachineInstance) string {
	type selection struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
		Interface string `json:"interface"`
		MAC       string `json:"mac,omitempty"`
	}
	var all []selection
	for _, n := range secondNetworks(vmi) {
		s := selection{Name: n.Multus.NetworkName, Namespace: vmi.Namespace, Interface: ident.LauncherInterface(n.Name)}
		if namespace, name, ok := strings.Cut(s.Name, "/"); ok {
			s.Namespace, s.Name = namespace, name
		}
		for _, f := range vmi.Spec.Domain.Devices.Interfaces {
			if f.Name == n.Name {
				s.MAC = f.MacAddress
			}
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return ""
	}
	text, err := json.Marshal(all)
	if err != nil {
		return "" // cannot happen: all are strings
	}
	return string(text)
}

// domain describes the VM's guest.
func (w *world) domain() guest.Domain {
	d := guest.Domain{Name: w.key.Namespace + "_" + w.key.Name, Hostname: hostname(w.vmi), UUID: string(w.vmi.UID), MemoryMiB: guest.DefaultMemoryMiB}
	if f := w.vmi.Spec.Domain.Firmware; f != nil && f.UUID != "" {
		d.UUID = string(f.UUID)
	}
	var bytes int64
	if r, ok := w.vmi.Spec.Domain.Resources.Requests[corev1.ResourceMemory]; ok {
		bytes = r.Value()
	}
	if m := w.vmi.Spec.Domain.Memory; m != nil && m.Guest != nil {
		bytes = m.Guest.Value()
	}
	if bytes > 0 {
		d.MemoryMiB = int(min(max(bytes/mebibyte, guest.DefaultMemoryMiB), maxMemoryMiB))
	}
	return d
}
