package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// VM is a virtual machine whose guest is a network namespace: its link's cable leads to one launcher or another, and moving it takes the guest's TCP along as a live
// migration does. Its launchers are plumbed as KubeVirt's bridge binding does; the objects are KubeVirt's, and who uses a VM plays KubeVirt's part, step by step.
type VM struct {
	// Name of the VM.
	Name types.NamespacedName
	// Netns is the guest's network namespace.
	Netns string
	// VMI is the instance.
	VMI *kubevirtv1.VirtualMachineInstance
	// Launchers so far; the guest's cable leads to Live.
	Launchers []*Pod
	Live      *Pod

	cluster *Cluster
}

// Port is the name of the VM's logical port.
func (v *VM) Port() ident.PortName {
	return ident.VMPort(v.Name.Namespace, v.Name.Name, ident.DefaultNetwork)
}

// In runs a command in the guest, see Cluster.In.
func (v *VM) In(ctx context.Context, args ...string) (string, error) {
	return v.cluster.In(ctx, v.Netns, args...)
}

// patch is the namespace of the cables: a bridge for each launcher, into one of which the guest's cable is plugged.
func (v *VM) patch() string { return v.Netns + "-patch" }

// HypervisorVolume is the directory of a launcher's volume in which the agent looks for the hypervisor's sockets. It is made: the launchers have no hypervisor.
func (v *VM) HypervisorVolume(ctx context.Context, p *Pod) (string, error) {
	dir := filepath.Join(p.Node.podsDir(), string(p.UID), "volumes/kubernetes.io~empty-dir/libvirt-runtime")
	_, err := v.cluster.In(ctx, "", "mkdir", "-p", dir)
	return dir, err
}

// VM starts one on a node.
func (n *Node) VM(ctx context.Context, name types.NamespacedName) (*VM, error) {
	c := n.cluster
	vmi := &kubevirtv1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name},
		Spec:       kubevirtv1.VirtualMachineInstanceSpec{Networks: []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}},
		Status:     kubevirtv1.VirtualMachineInstanceStatus{Phase: kubevirtv1.Running},
	}
	vmi.Spec.Domain.Devices.Interfaces = []kubevirtv1.Interface{*kubevirtv1.DefaultBridgeNetworkInterface()}
	if err := c.API.Create(ctx, vmi); err != nil {
		return nil, fmt.Errorf("create VMI %s: %w", name, err)
	}
	v := &VM{Name: name, Netns: name.Namespace + "-" + name.Name, VMI: vmi, cluster: c}
	p, err := v.launcher(ctx, n, nil)
	if err != nil {
		return nil, err
	}
	if err := v.makeGuest(ctx, p); err != nil {
		return nil, err
	}
	return v, v.Plug(ctx, p)
}

// launcher is a pod of the VM, attached and plumbed; a migration's target if vmim is not nil.
func (v *VM) launcher(ctx context.Context, n *Node, vmim *kubevirtv1.VirtualMachineInstanceMigration) (*Pod, error) {
	name := types.NamespacedName{Namespace: v.Name.Namespace, Name: fmt.Sprintf("virt-launcher-%s-%d", v.Name.Name, len(v.Launchers)+1)}
	controller := true
	p, err := n.Pod(ctx, name, func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: kubevirtv1.GroupVersion.String(), Kind: "VirtualMachineInstance", Name: v.VMI.Name, UID: v.VMI.UID, Controller: &controller,
		}}
		p.Labels = map[string]string{kubevirtv1.AppLabel: "virt-launcher"}
		if vmim != nil {
			p.Labels[kubevirtv1.MigrationJobLabel] = string(vmim.UID)
		}
		p.Spec.Containers[0].Name = "compute"
	})
	if err != nil {
		return nil, err
	}
	v.Launchers = append(v.Launchers, p)
	return p, v.plumb(ctx, p, len(v.Launchers))
}

// plumb does to a launcher what KubeVirt's bridge binding does, with a veth in place of the tap.
func (v *VM) plumb(ctx context.Context, p *Pod, number int) error {
	script := ""
	if number == 1 {
		script = "ip netns add PATCH\nip netns exec PATCH sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1\n"
	}
	script += `
		ip netns exec POD sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
		ip -n POD link set eth0 down
		ip -n POD address flush dev eth0
		ip -n POD link set eth0 name eth0-nic
		ip -n POD link set eth0-nic address LAUNCHER
		ip -n POD link add k6t-eth0 type bridge mcast_snooping 0
		ip -n POD link add tap0 mtu MTU type veth peer name tapNUMBER netns PATCH
		ip -n POD link set eth0-nic up master k6t-eth0
		ip -n POD link set tap0 up master k6t-eth0
		ip -n POD link set k6t-eth0 up
		ip -n PATCH link add brNUMBER type bridge mcast_snooping 0
		ip -n PATCH link set tapNUMBER up mtu MTU master brNUMBER
		ip -n PATCH link set brNUMBER up`
	return v.cluster.shell(ctx, strings.NewReplacer("PATCH", v.patch(), "POD", p.Netns, "LAUNCHER", fmt.Sprintf("02:00:00:00:00:%02x", number), "NUMBER", fmt.Sprint(number), "MTU", fmt.Sprint(p.MTU)).Replace(script))
}

// makeGuest makes the guest's namespace with the identity that its first launcher was given.
func (v *VM) makeGuest(ctx context.Context, p *Pod) error {
	script := `
		ip netns add GUEST
		ip -n GUEST link set lo up
		ip -n PATCH link add cable mtu MTU type veth peer name eth0 netns GUEST
		ip -n GUEST link set eth0 address MAC mtu MTU
		ip -n GUEST link set eth0 up
		ip -n PATCH link set cable up
	`
	for i, ip := range p.IPs {
		script += fmt.Sprintf("ip -n GUEST address add %s dev eth0 nodad\nip -n GUEST route add default via %s dev eth0\n", ip, p.Gateways[i])
	}
	return v.cluster.shell(ctx, strings.NewReplacer("GUEST", v.Netns, "PATCH", v.patch(), "MAC", p.MAC, "MTU", fmt.Sprint(p.MTU)).Replace(script))
}

// Plug leads the guest's cable to a launcher, within microseconds. Nobody is told.
func (v *VM) Plug(ctx context.Context, p *Pod) error { return v.Arrive(ctx, p, "true") }

// Arrive is Plug, and a command in the guest right after it: what announces the guest where it runs now.
func (v *VM) Arrive(ctx context.Context, p *Pod, announce ...string) error {
	i := slices.Index(v.Launchers, p)
	if i < 0 {
		return fmt.Errorf("plug VM %s: pod %s is none of its launchers", v.Name, p.Name)
	}
	v.Live = p
	return v.cluster.shell(ctx, fmt.Sprintf("ip -n %s link set cable master br%d\nip netns exec %s %s", v.patch(), i+1, v.Netns, strings.Join(announce, " ")))
}

// Stop has the guest neither hear nor say anything but what it announces itself with, as a hypervisor that has stopped it. What it says is lost on its way: nothing that runs in it is told, as by a
// filter of its own, for which a ping ends.
func (v *VM) Stop(ctx context.Context) error {
	return v.filter(ctx, `table netdev stopped {
		chain out { type filter hook ingress device "cable" priority 0; meta protocol { ip, ip6 } drop; }
		chain in { type filter hook egress device "cable" priority 0; meta protocol { ip, ip6 } drop; }
	}`)
}

// Go is the end of Stop.
func (v *VM) Go(ctx context.Context) error { return v.filter(ctx, "delete table netdev stopped") }

// filter has nft do something to the guest's cable.
func (v *VM) filter(ctx context.Context, what string) error {
	if _, err := v.cluster.In(ctx, v.patch(), "nft", what); err != nil {
		return fmt.Errorf("cable of VM %s: %w", v.Name, err)
	}
	return nil
}

// Migration creates one, and its target's pod on a node, which is attached when it returns.
func (v *VM) Migration(ctx context.Context, to *Node) (*kubevirtv1.VirtualMachineInstanceMigration, *Pod, error) {
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.Name.Namespace, GenerateName: "kubevirt-migrate-vm-"},
		Spec:       kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: v.Name.Name},
	}
	if err := v.cluster.API.Create(ctx, vmim); err != nil {
		return nil, nil, fmt.Errorf("migrate VM %s: %w", v.Name, err)
	}
	// A target is younger than its source, and creation times have whole seconds.
	time.Sleep(time.Until(v.Live.CreationTimestamp.Add(time.Second)))
	p, err := v.launcher(ctx, to, vmim)
	return vmim, p, err
}

// Ready says of a migration's target that the VM runs there, as virt-controller does.
func (v *VM) Ready(ctx context.Context, target *Pod) error {
	was := target.DeepCopy()
	metav1.SetMetaDataAnnotation(&target.ObjectMeta, kubevirtv1.MigrationTargetReadyTimestamp, time.Now().UTC().String())
	if err := v.cluster.API.Patch(ctx, target.Pod, client.MergeFrom(was)); err != nil {
		return fmt.Errorf("pod %s is ready: %w", target.Name, err)
	}
	return nil
}

// Abort says of a migration that it has failed, and of its target's pod the same.
func (v *VM) Abort(ctx context.Context, vmim *kubevirtv1.VirtualMachineInstanceMigration, target *Pod) error {
	return v.over(ctx, vmim, kubevirtv1.MigrationFailed, target, corev1.PodFailed)
}

// End says of a migration that it has succeeded, and of its source's pod the same.
func (v *VM) End(ctx context.Context, vmim *kubevirtv1.VirtualMachineInstanceMigration, source *Pod) error {
	return v.over(ctx, vmim, kubevirtv1.MigrationSucceeded, source, corev1.PodSucceeded)
}

// over gives a migration its last phase, and the pod that ends with it.
func (v *VM) over(ctx context.Context, vmim *kubevirtv1.VirtualMachineInstanceMigration, phase kubevirtv1.VirtualMachineInstanceMigrationPhase, pod *Pod, last corev1.PodPhase) error {
	was := vmim.DeepCopy()
	vmim.Status.Phase = phase
	err := v.cluster.API.Status().Patch(ctx, vmim, client.MergeFrom(was))
	before := pod.DeepCopy()
	pod.Status.Phase = last
	if err := errors.Join(err, v.cluster.API.Status().Patch(ctx, pod.Pod, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("end migration %s, %s: %w", vmim.Name, phase, err)
	}
	return nil
}

// Remove removes the VM with its launchers.
func (v *VM) Remove(ctx context.Context) error {
	var errs []error
	for _, p := range v.Launchers {
		errs = append(errs, p.Remove(ctx))
	}
	_, err := v.cluster.In(ctx, "", "ip", "netns", "delete", v.Netns)
	_, perr := v.cluster.In(ctx, "", "ip", "netns", "delete", v.patch())
	return errors.Join(append(errs, err, perr, client.IgnoreNotFound(v.cluster.API.Delete(ctx, v.VMI)))...)
}
