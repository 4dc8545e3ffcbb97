package migration

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nad"
)

// epoch is second 0 of the tests.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func second(s string) (metav1.Time, error) {
	n, err := strconv.ParseFloat(s, 64)
	return metav1.Time{Time: epoch.Add(time.Duration(n * float64(time.Second)))}, err
}

// world is everything that the controller could see in a scenario file.
type world struct {
	vmi    *kubevirtv1.VirtualMachineInstance
	pods   map[string]*corev1.Pod
	vmims  map[string]*kubevirtv1.VirtualMachineInstanceMigration
	ovn    *fakeOVN
	env    Env
	northd bool
	made   int
	// gone are nodes that were deleted or are out of service.
	gone map[ident.ChassisName]bool
}

func newWorld() *world {
	w := &world{pods: map[string]*corev1.Pod{}, vmims: map[string]*kubevirtv1.VirtualMachineInstanceMigration{}, ovn: newFakeOVN("n1", "n2", "n3"), northd: true, gone: map[ident.ChassisName]bool{}}
	w.env = Env{Now: epoch, Chassis: w.ovn.chassis}
	w.ovn.port(ident.DefaultNetwork)
	return w
}

func (w *world) decide() Decision {
	pods := slices.SortedFunc(maps.Values(w.pods), func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	vmims := slices.SortedFunc(maps.Values(w.vmims), func(a, b *kubevirtv1.VirtualMachineInstanceMigration) int { return cmp.Compare(a.Name, b.Name) })
	return Decide(Observe(pods, w.vmi, vmims, w.ovn.rows, w.ovn.bindings()).Fenced(w.gone), w.env)
}

// settle decides, writes and lets northd run until nothing changes any more, and tells every decision that differs from the one before.
func (w *world) settle() (string, error) {
	var b strings.Builder
	last, same := "", 0
	for range 20 {
		d := w.decide()
		if err := w.ovn.apply(d); err != nil {
			return b.String(), err
		}
		if again := w.decide(); changed(again) {
			return b.String(), fmt.Errorf("deciding twice changes a port:\n%s%s", describe(d), describe(again))
		}
		if text := describe(d); text != last {
			b.WriteString(text)
			last, same = text, 0
		} else if same++; same == 3 { // northd needs two rounds to forget an activation
			return b.String(), nil
		}
		if w.northd {
			w.ovn.northd()
		}
	}
	return b.String(), fmt.Errorf("no end after 20 rounds")
}

// do obeys one line of a scenario: a verb, perhaps a name, then key=value or bare words.
func (w *world) do(line string) error {
	words := strings.Fields(line)
	verb, words := words[0], words[1:]
	name := ""
	if slices.Contains([]string{"pod", "vmim", "row", "binding"}, verb) {
		if len(words) == 0 {
			return fmt.Errorf("%s needs a name", verb)
		}
		name, words = words[0], words[1:]
	}
	args := map[string]string{}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		args[key] = value
	}
	switch verb {
	case "vmi":
		return w.doVMI(args)
	case "record":
		return w.doRecord(args)
	case "pod":
		return w.doPod(name, args)
	case "vmim":
		return w.doVMIM(name, args)
	}
	return w.doOVN(verb, name, args, words)
}

func has(args map[string]string, key string) bool { _, ok := args[key]; return ok }

func (w *world) doVMI(args map[string]string) error {
	if has(args, "gone") {
		w.vmi = nil
		return nil
	}
	if w.vmi == nil {
		w.vmi = &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "vm", UID: "V1"}}
		w.vmi.Status.Phase = kubevirtv1.Running
		w.vmi.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
	}
	for key, value := range args {
		switch key {
		case "uid":
			w.vmi.UID = types.UID(value)
		case "phase":
			w.vmi.Status.Phase = kubevirtv1.VirtualMachineInstancePhase(value)
		case "node":
			w.vmi.Status.NodeName = value
		case "networks":
			for n := range strings.SplitSeq(value, ",") {
				w.vmi.Spec.Networks = append(w.vmi.Spec.Networks, kubevirtv1.Network{Name: n,
					NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: "nad-" + n}}})
			}
		default:
			return fmt.Errorf("vmi: unknown %q", key)
		}
	}
	return nil
}

func (w *world) doRecord(args map[string]string) error {
	if has(args, "none") {
		w.vmi.Status.MigrationState = nil
		return nil
	}
	if uid := args["uid"]; w.vmi.Status.MigrationState == nil || uid != "" && uid != string(w.vmi.Status.MigrationState.MigrationUID) {
		w.vmi.Status.MigrationState = &kubevirtv1.VirtualMachineInstanceMigrationState{}
	}
	return changeRecord(w.vmi.Status.MigrationState, args)
}

func changeRecord(m *kubevirtv1.VirtualMachineInstanceMigrationState, args map[string]string) error {
	for key, value := range args {
		switch key {
		case "uid":
			m.MigrationUID = types.UID(value)
		case "source":
			m.SourcePod = value
		case "target":
			m.TargetPod = value
		case "detected":
			m.TargetNodeDomainDetected = true
		case "ready":
			at, err := second(value)
			if err != nil {
				return err
			}
			m.TargetNodeDomainReadyTimestamp = &at
		case "completed":
			m.Completed = true
		case "failed":
			m.Failed, m.Completed = true, true
		case "aborted":
			m.Failed, m.Completed, m.AbortStatus = true, true, kubevirtv1.MigrationAbortSucceeded
		case "mode":
			m.Mode = kubevirtv1.MigrationMode(value)
		default:
			return fmt.Errorf("record: unknown %q", key)
		}
	}
	return nil
}

func (w *world) doPod(name string, args map[string]string) error {
	if has(args, "gone") {
		delete(w.pods, name)
		return nil
	}
	pod := w.pods[name]
	if pod == nil {
		w.made += 10
		pod = newLauncher(name, name, "V1", epoch.Add(time.Duration(w.made)*time.Second))
		w.pods[name] = pod
	}
	for key, value := range args {
		switch key {
		case "node":
			pod.Spec.NodeName = value
		case "phase":
			pod.Status.Phase = corev1.PodPhase(value)
		case "job":
			pod.Labels[kubevirtv1.MigrationJobLabel] = value
		case "label":
			pod.Labels[kubevirtv1.AppLabel] = value
		case "owner":
			pod.OwnerReferences[0].UID = types.UID(value)
		case "compute":
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "compute",
				State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}}
		case "terminating":
			pod.DeletionTimestamp = &metav1.Time{Time: w.env.Now}
		case "ready", "created":
			at, err := second(value)
			if err != nil {
				return err
			}
			if key == "created" {
				pod.CreationTimestamp = at
			} else {
				pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] = at.String()
			}
		case "ready-text":
			pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] = value
		case "networks":
			setNetworks(pod, strings.FieldsFunc(value, func(r rune) bool { return r == ',' }))
		default:
			return fmt.Errorf("pod: unknown %q", key)
		}
	}
	return nil
}

func newLauncher(name, uid, vmiUID string, created time.Time) *corev1.Pod {
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, UID: types.UID(uid), CreationTimestamp: metav1.Time{Time: created},
			Labels: map[string]string{kubevirtv1.AppLabel: "virt-launcher"}, Annotations: map[string]string{kubevirtv1.DomainAnnotation: "vm"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachineInstance", Name: "vm",
				UID: types.UID(vmiUID), Controller: &yes}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
}

// setNetworks writes the annotation as KubeVirt does.
func setNetworks(pod *corev1.Pod, names []string) {
	var entries []string
	for _, n := range names {
		entries = append(entries, fmt.Sprintf(`{"name":"nad-%s","namespace":"ns","interface":"%s"}`, n, ident.LauncherInterface(n)))
	}
	pod.Annotations[nad.Annotation] = "[" + strings.Join(entries, ",") + "]"
}

func (w *world) doVMIM(name string, args map[string]string) error {
	if has(args, "gone") {
		delete(w.vmims, name)
		return nil
	}
	vmim := w.vmims[name]
	if vmim == nil {
		vmim = &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(strings.ToUpper(name))},
			Spec: kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: "vm"}}
		w.vmims[name] = vmim
	}
	for key, value := range args {
		switch key {
		case "phase":
			vmim.Status.Phase = kubevirtv1.VirtualMachineInstanceMigrationPhase(value)
		case "vmi":
			vmim.Spec.VMIName = value
		case "terminating":
			vmim.DeletionTimestamp = &metav1.Time{Time: w.env.Now}
		default:
			return fmt.Errorf("vmim: unknown %q", key)
		}
	}
	return nil
}

func (w *world) doOVN(verb, name string, args map[string]string, words []string) error {
	switch verb {
	case "row":
		if has(args, "gone") {
			delete(w.ovn.rows, name)
			delete(w.ovn.sb, name)
			return nil
		}
		if w.ovn.rows[name] == nil {
			w.ovn.port(name)
		}
		row := w.ovn.rows[name]
		for key, value := range args {
			switch key {
			case "requested":
				set(row.Options, ident.OptionRequestedChassis, value)
			case "strategy":
				set(row.Options, ident.OptionActivationStrategy, value)
			case "stamp":
				f := append(strings.Split(value, ","), "", "", "")
				set(row.ExternalIDs, ident.KeyMigration, f[0])
				set(row.ExternalIDs, ident.KeyMigrationSource, f[1])
				set(row.ExternalIDs, ident.KeyMigrationTarget, f[2])
			default:
				return fmt.Errorf("row: unknown %q", key)
			}
		}
	case "activate":
		w.ovn.activate(ident.ChassisName(words[0]))
	case "binding":
		w.ovn.sb[name].Options[ident.BindingActivated] = args["activated"]
	case "chassis":
		clear(w.ovn.chassis)
		for _, c := range words {
			w.ovn.chassis[ident.ChassisName(c)] = true
		}
	case "node": // node n1 gone, node n1 back
		w.gone[ident.ChassisName(words[0])] = words[1] == "gone"
	case "now":
		at, err := second(words[0])
		w.env.Now = at.Time
		return err
	case "northd":
		w.northd = words[0] == "on"
	default:
		return fmt.Errorf("unknown %q", verb)
	}
	return nil
}
