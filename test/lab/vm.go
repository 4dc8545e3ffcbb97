package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// vmPoll is how often something of a VM is looked at that is waited for.
const vmPoll = 50 * time.Millisecond

// VMs makes virtual machines in a lab, and moves them.
type VMs struct {
	lab *Lab
	api client.Client
}

// VMs returns a client for the lab's virtual machines.
func (l *Lab) VMs() (*VMs, error) {
	config, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	scheme, err := kubevirt.Scheme()
	if err != nil {
		return nil, err
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	return &VMs{lab: l, api: api}, nil
}

// VMOptions describe a VM. Only the name is needed.
type VMOptions struct {
	// Namespace is "default" when empty.
	Namespace, Name string
	// MemoryMiB is guest.DefaultMemoryMiB when zero, and at most 256.
	MemoryMiB int
	// Binding is guest.Bridge when empty.
	Binding guest.Binding
	// MAC is the guest's; empty lets the network choose.
	MAC string
	// Ports are the named ports of its interface.
	Ports []kubevirtv1.Port
	// Networks are the NetworkAttachmentDefinitions of its namespace on which it has further interfaces, with the bridge binding: see Lab.StartMultus.
	Networks []string
	// Node is where it is to start, and run again after it has stopped; it can be migrated from there to other nodes. Empty for anywhere.
	Node string
	// Hostname is the guest's; empty is the VM's name.
	Hostname string
	// Labels and Annotations are the VMI's: see package kubevirt for those that make a lab's VM misbehave.
	Labels, Annotations map[string]string
	// Bare makes a VirtualMachineInstance without a VirtualMachine: when it has ended, it has.
	Bare bool
	// Strategy is Always when empty.
	Strategy kubevirtv1.VirtualMachineRunStrategy
	// Eviction says what becomes of the VM when its pod is to be evicted; empty for what becomes of any pod, as in KubeVirt.
	Eviction kubevirtv1.EvictionStrategy
}

// VM is one VM, by its name.
type VM struct {
	vms             *VMs
	Namespace, Name string
}

// Get returns a VM by its name, whether or not there is one. An empty namespace is "default".
func (v *VMs) Get(namespace, name string) *VM {
	return &VM{vms: v, Namespace: cmp.Or(namespace, metav1.NamespaceDefault), Name: name}
}

// Create makes a VM. It need not run yet when Create returns.
func (v *VMs) Create(ctx context.Context, o VMOptions) (*VM, error) {
	o.Namespace, o.Strategy = cmp.Or(o.Namespace, metav1.NamespaceDefault), cmp.Or(o.Strategy, kubevirtv1.RunStrategyAlways)
	vmi := o.instance()
	var object client.Object = vmi
	if !o.Bare {
		object = &kubevirtv1.VirtualMachine{
			ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name},
			Spec: kubevirtv1.VirtualMachineSpec{RunStrategy: &o.Strategy, Template: &kubevirtv1.VirtualMachineInstanceTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: vmi.Labels, Annotations: vmi.Annotations}, Spec: vmi.Spec,
			}},
		}
	}
	if err := v.api.Create(ctx, object); err != nil {
		return nil, fmt.Errorf("create VM %s/%s: %w", o.Namespace, o.Name, err)
	}
	return v.Get(o.Namespace, o.Name), nil
}

func (o VMOptions) instance() *kubevirtv1.VirtualMachineInstance {
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{
		Namespace: o.Namespace, Name: o.Name, Labels: maps.Clone(o.Labels), Annotations: maps.Clone(o.Annotations),
	}}
	vmi.Spec.Hostname = o.Hostname
	if o.Eviction != "" {
		vmi.Spec.EvictionStrategy = &o.Eviction
	}
	nic := kubevirtv1.DefaultBridgeNetworkInterface()
	if o.Binding == guest.Masquerade {
		nic = kubevirtv1.DefaultMasqueradeNetworkInterface()
	} else {
		metav1.SetMetaDataAnnotation(&vmi.ObjectMeta, kubevirtv1.AllowPodBridgeNetworkLiveMigrationAnnotation, "true")
	}
	nic.MacAddress, nic.Ports = o.MAC, o.Ports
	memory := resource.NewQuantity(int64(cmp.Or(o.MemoryMiB, guest.DefaultMemoryMiB))<<20, resource.BinarySI)
	vmi.Spec.Domain.Memory = &kubevirtv1.Memory{Guest: memory}
	vmi.Spec.Domain.Devices.Interfaces = []kubevirtv1.Interface{*nic}
	vmi.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
	for _, name := range o.Networks {
		second := *kubevirtv1.DefaultBridgeNetworkInterface()
		second.Name = name
		vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, second)
		vmi.Spec.Networks = append(vmi.Spec.Networks, kubevirtv1.Network{Name: name, NetworkSource: kubevirtv1.NetworkSource{Multus: &kubevirtv1.MultusNetwork{NetworkName: name}}})
	}
	if o.Node != "" {
		// A preference: a requirement would keep it there for ever.
		vmi.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{
			{Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{o.Node}},
			}}},
		}}}
	}
	return vmi
}

// List returns all VMIs of all namespaces, and the VirtualMachines that have none.
func (v *VMs) List(ctx context.Context) ([]kubevirtv1.VirtualMachineInstance, []kubevirtv1.VirtualMachine, error) {
	var vmis kubevirtv1.VirtualMachineInstanceList
	var vms kubevirtv1.VirtualMachineList
	if err := errors.Join(v.api.List(ctx, &vmis), v.api.List(ctx, &vms)); err != nil {
		return nil, nil, fmt.Errorf("list VMs: %w", err)
	}
	stopped := slices.DeleteFunc(vms.Items, func(vm kubevirtv1.VirtualMachine) bool {
		return slices.ContainsFunc(vmis.Items, func(vmi kubevirtv1.VirtualMachineInstance) bool {
			return vmi.Namespace == vm.Namespace && vmi.Name == vm.Name
		})
	})
	return vmis.Items, stopped, nil
}

// Key names the VM.
func (m *VM) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: m.Namespace, Name: m.Name}
}

// String is NAMESPACE/NAME.
func (m *VM) String() string { return m.Namespace + "/" + m.Name }

// VMI reads the VM's VirtualMachineInstance.
func (m *VM) VMI(ctx context.Context) (*kubevirtv1.VirtualMachineInstance, error) {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	if err := m.vms.api.Get(ctx, m.Key(), vmi); err != nil {
		return nil, fmt.Errorf("read VirtualMachineInstance %s: %w", m, err)
	}
	return vmi, nil
}

// Await returns the VMI when ok says so, or an error that says what it was like when ctx ended.
func (m *VM) Await(ctx context.Context, what string, ok func(*kubevirtv1.VirtualMachineInstance) bool) (*kubevirtv1.VirtualMachineInstance, error) {
	for {
		vmi, err := m.VMI(ctx)
		if err == nil && ok(vmi) {
			return vmi, nil
		}
		if pauseErr := pause(ctx, vmPoll); pauseErr != nil {
			phase := "there is no such VM"
			if vmi != nil {
				phase = "it is " + string(vmi.Status.Phase) + " on node " + cmp.Or(vmi.Status.NodeName, "(none)")
			}
			return nil, fmt.Errorf("VM %s is not %s: %s: see godwit-lab kubectl -n %s describe vmi,pods, and godwit-lab logs hub/kubevirt: %w",
				m, what, phase, m.Namespace, errors.Join(err, pauseErr))
		}
	}
}

// AwaitRunning returns the VMI when its guest runs.
func (m *VM) AwaitRunning(ctx context.Context) (*kubevirtv1.VirtualMachineInstance, error) {
	return m.Await(ctx, "running", func(vmi *kubevirtv1.VirtualMachineInstance) bool {
		return vmi.Status.Phase == kubevirtv1.Running && vmi.DeletionTimestamp == nil
	})
}

// Addresses are the VM's on the pod network, as its VMI tells them.
func (m *VM) Addresses(ctx context.Context) ([]netip.Addr, error) {
	vmi, err := m.VMI(ctx)
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	second := map[string]bool{}
	for _, n := range vmi.Spec.Networks {
		second[n.Name] = n.Multus != nil
	}
	for _, i := range vmi.Status.Interfaces {
		if second[i.Name] {
			continue
		}
		for _, s := range i.IPs {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("VM %s: an address in its status: %w", m, err)
			}
			all = append(all, a)
		}
	}
	return all, nil
}

// AwaitAnswer returns when the guest's echo answers on all of its addresses on the pod network, asked from the node that it runs on.
func (m *VM) AwaitAnswer(ctx context.Context) error {
	vmi, err := m.AwaitRunning(ctx)
	if err != nil {
		return err
	}
	var urls []string
	addresses, err := m.Addresses(ctx)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		urls = append(urls, "tcp://"+netip.AddrPortFrom(a, 7).String())
	}
	if len(urls) == 0 {
		return fmt.Errorf("VM %s has no address in its status", m)
	}
	for {
		out, err := m.vms.lab.Exec(ctx, vmi.Status.NodeName, append([]string{"/proc/1/exe", "probe"}, urls...)...)
		if err == nil {
			return nil
		}
		if pauseErr := pause(ctx, vmPoll); pauseErr != nil {
			return fmt.Errorf("VM %s does not answer: %s: see godwit-lab vm console %s: %w", m, out, m.Name, errors.Join(err, pauseErr))
		}
	}
}

// Launcher is the launcher pod in which the VM runs, by the VMI's own record.
func (m *VM) Launcher(ctx context.Context) (*corev1.Pod, error) {
	vmi, err := m.VMI(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := m.Launchers(ctx, vmi)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		p := &pods[i]
		if p.Spec.NodeName == vmi.Status.NodeName && p.Status.Phase == corev1.PodRunning && p.Labels[kubevirtv1.NodeNameLabel] == vmi.Status.NodeName {
			return p, nil
		}
	}
	return nil, fmt.Errorf("VM %s has no launcher that runs on node %s", m, vmi.Status.NodeName)
}

// Launchers are all pods of a VMI, finished ones too.
func (m *VM) Launchers(ctx context.Context, vmi *kubevirtv1.VirtualMachineInstance) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := m.vms.api.List(ctx, &pods, client.InNamespace(m.Namespace), client.MatchingLabels{kubevirtv1.CreatedByLabel: string(vmi.UID)})
	if err != nil {
		return nil, fmt.Errorf("list the launchers of VM %s: %w", m, err)
	}
	return pods.Items, nil
}

// Guest connects to the launcher in which the VM runs, past KubeVirt's stand-in. Close the client.
func (m *VM) Guest(ctx context.Context) (*guest.Client, error) {
	pod, err := m.Launcher(ctx)
	if err != nil {
		return nil, err
	}
	return guest.Dial(ctx, m.vms.lab.guests().Dir(pod))
}

// Console attaches to the guest's serial console, a root shell.
func (m *VM) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	g, err := m.Guest(ctx)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	return g.Console(ctx)
}

// Start starts a VM that was stopped; Stop lets it shut down and stay so. Neither waits.
func (m *VM) Start(ctx context.Context) error {
	return m.setStrategy(ctx, kubevirtv1.RunStrategyAlways)
}

// Stop lets the VM shut down, and stay so.
func (m *VM) Stop(ctx context.Context) error {
	return m.setStrategy(ctx, kubevirtv1.RunStrategyHalted)
}

func (m *VM) setStrategy(ctx context.Context, s kubevirtv1.VirtualMachineRunStrategy) error {
	vm := &kubevirtv1.VirtualMachine{}
	if err := m.vms.api.Get(ctx, m.Key(), vm); err != nil {
		return fmt.Errorf("read VirtualMachine %s: %w", m, err)
	}
	from := client.MergeFrom(vm.DeepCopy())
	vm.Spec.Running, vm.Spec.RunStrategy = nil, &s
	if err := m.vms.api.Patch(ctx, vm, from); err != nil {
		return fmt.Errorf("set the run strategy of VirtualMachine %s: %w", m, err)
	}
	return nil
}

// AwaitStopped returns when there is no VMI.
func (m *VM) AwaitStopped(ctx context.Context) error {
	for {
		_, err := m.VMI(ctx)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if pauseErr := pause(ctx, vmPoll); pauseErr != nil {
			return fmt.Errorf("VM %s has not stopped: %w", m, errors.Join(err, pauseErr))
		}
	}
}

// Delete deletes the VM, and returns when nothing of it is left but finished migrations.
func (m *VM) Delete(ctx context.Context) error {
	object := metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name}
	vm := &kubevirtv1.VirtualMachine{ObjectMeta: object}
	vmi := &kubevirtv1.VirtualMachineInstance{ObjectMeta: object}
	missing := m.vms.api.Delete(ctx, vm)
	if missing != nil && !apierrors.IsNotFound(missing) {
		return fmt.Errorf("delete VirtualMachine %s: %w", m, missing)
	}
	if err := m.vms.api.Delete(ctx, vmi); err != nil && (!apierrors.IsNotFound(err) || missing != nil) {
		return fmt.Errorf("delete VirtualMachineInstance %s: %w", m, err)
	}
	if err := m.AwaitStopped(ctx); err != nil {
		return err
	}
	for {
		err := m.vms.api.Get(ctx, m.Key(), vm)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if pauseErr := pause(ctx, vmPoll); pauseErr != nil {
			return fmt.Errorf("VirtualMachine %s is not gone: %w", m, errors.Join(err, pauseErr))
		}
	}
}
