package kubevirt

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// hotplugRules are virt-controller's and virt-handler's for NICs that come and go while a VM runs. What is new in the VirtualMachine's template is new in the VMI; the
// next launcher, a migration's target, has a link for it; when the VM is there it is plugged. What the template calls absent is unplugged at once, and is then gone from
// VMI and template; its link goes with the launcher. Nobody but the user migrates here: KubeVirt does it by itself where workload updates by live migration are on.
func hotplugRules(w *world) *step {
	if w.vmi == nil || w.vmi.Status.Phase != kubevirtv1.Running || w.vmi.DeletionTimestamp != nil {
		return nil
	}
	return first(w, nicsFromTemplate, nicsUnplugged, nicsForgotten, nicsPlugged, nicsInStatus, migrationRequired)
}

// nicsFromTemplate brings into the VMI what is new, or absent, in its VirtualMachine's template. Only second networks by the bridge binding come while a VM runs.
func nicsFromTemplate(w *world) *step {
	if !w.ownVMI() || w.vm.Spec.Template == nil {
		return nil
	}
	template := &w.vm.Spec.Template.Spec
	return w.changeVMI("NICs of the template", func(vmi *kubevirtv1.VirtualMachineInstance) {
		for _, f := range template.Domain.Devices.Interfaces {
			i := slices.IndexFunc(vmi.Spec.Domain.Devices.Interfaces, named(f.Name))
			network := slices.IndexFunc(template.Networks, func(n kubevirtv1.Network) bool { return n.Name == f.Name })
			switch {
			case i >= 0 && f.State == kubevirtv1.InterfaceStateAbsent:
				vmi.Spec.Domain.Devices.Interfaces[i].State = f.State
			case i < 0 && f.State == "" && f.Bridge != nil && network >= 0 && template.Networks[network].Multus != nil:
				vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, f)
				vmi.Spec.Networks = append(vmi.Spec.Networks, template.Networks[network])
			}
		}
	})
}

func named(name string) func(kubevirtv1.Interface) bool {
	return func(f kubevirtv1.Interface) bool { return f.Name == name }
}

// absent are the VMI's NICs that are to go.
func absent(vmi *kubevirtv1.VirtualMachineInstance) (names []string) {
	for _, f := range vmi.Spec.Domain.Devices.Interfaces {
		if f.State == kubevirtv1.InterfaceStateAbsent {
			names = append(names, f.Name)
		}
	}
	return names
}

func dropNIC(spec *kubevirtv1.VirtualMachineInstanceSpec, name string) {
	spec.Domain.Devices.Interfaces = slices.DeleteFunc(spec.Domain.Devices.Interfaces, named(name))
	spec.Networks = slices.DeleteFunc(spec.Networks, func(n kubevirtv1.Network) bool { return n.Name == name })
}

// nicsUnplugged takes absent NICs from the guest, and then from the VMI.
func nicsUnplugged(w *world) *step {
	pod := w.current()
	if pod == nil || down(pod) || w.migrating() {
		return nil
	}
	v := w.view(pod.UID)
	for _, name := range absent(w.vmi) {
		if !v.connected {
			return nil
		}
		if slices.ContainsFunc(v.NICs, func(n guest.Plumbed) bool { return n.Name == name && n.Plugged }) {
			if s := w.request(pod, "unplug "+name, func(ctx context.Context, l Launcher) error { return l.Unplug(ctx, name) }); s != nil {
				return s
			}
			continue // it is on its way, or was refused
		}
		return w.changeVMI("NIC "+name+" is unplugged", func(vmi *kubevirtv1.VirtualMachineInstance) {
			dropNIC(&vmi.Spec, name)
			vmi.Status.Interfaces = slices.DeleteFunc(vmi.Status.Interfaces, func(i kubevirtv1.VirtualMachineInstanceNetworkInterface) bool { return i.Name == name })
		})
	}
	return nil
}

// nicsForgotten takes what is absent, and gone from the VMI, from the template.
func nicsForgotten(w *world) *step {
	if !w.ownVMI() || w.vm.Spec.Template == nil {
		return nil
	}
	return w.changeVM("absent NICs are gone", func(vm *kubevirtv1.VirtualMachine) {
		spec := &vm.Spec.Template.Spec
		for _, f := range slices.Clone(spec.Domain.Devices.Interfaces) {
			if f.State == kubevirtv1.InterfaceStateAbsent && !slices.ContainsFunc(w.vmi.Spec.Domain.Devices.Interfaces, named(f.Name)) {
				dropNIC(spec, f.Name)
			}
		}
	})
}

// nicsPlugged gives the guest the NICs that its pod has, and it has not.
func nicsPlugged(w *world) *step {
	pod := w.current()
	if pod == nil || down(pod) || w.migrating() {
		return nil
	}
	v := w.view(pod.UID)
	if v.State != guest.Running {
		return nil
	}
	for _, n := range v.NICs {
		wanted := slices.ContainsFunc(w.vmi.Spec.Domain.Devices.Interfaces, func(f kubevirtv1.Interface) bool { return f.Name == n.Name && f.State == "" })
		if !n.Plugged && wanted {
			if s := w.request(pod, "plug "+n.Name, func(ctx context.Context, l Launcher) error { return l.Plug(ctx, n.Name) }); s != nil {
				return s
			}
		}
	}
	return nil
}

// nicsInStatus tells of NICs that were plugged.
func nicsInStatus(w *world) *step {
	pod := w.current()
	if pod == nil || w.migrating() {
		return nil
	}
	v := w.view(pod.UID)
	return w.changeVMI("NICs in status", func(vmi *kubevirtv1.VirtualMachineInstance) {
		for _, f := range nicsOf(vmi) {
			known := slices.ContainsFunc(vmi.Status.Interfaces, func(i kubevirtv1.VirtualMachineInstanceNetworkInterface) bool { return i.Name == f.Name })
			if known || !slices.ContainsFunc(v.NICs, func(n guest.Plumbed) bool { return n.Name == f.Name && n.Plugged }) {
				continue
			}
			status := kubevirtv1.VirtualMachineInstanceNetworkInterface{Name: f.Name, PodInterfaceName: f.Link}
			fillInterface(&status, v.NICs)
			vmi.Status.Interfaces = append(vmi.Status.Interfaces, status)
		}
	})
}

// migrationRequired says whether the VMI has a NIC for which its launcher has no link.
func migrationRequired(w *world) *step {
	pod := w.current()
	if pod == nil || w.migrating() {
		return nil
	}
	v := w.view(pod.UID)
	if !v.connected {
		return nil
	}
	lacks := slices.ContainsFunc(nicsOf(w.vmi), func(f guest.NIC) bool {
		return !slices.ContainsFunc(v.NICs, func(n guest.Plumbed) bool { return n.Name == f.Name })
	})
	return w.changeVMI("migration required", func(vmi *kubevirtv1.VirtualMachineInstance) {
		if lacks {
			w.setCondition(vmi, kubevirtv1.VirtualMachineInstanceCondition{
				Type: kubevirtv1.VirtualMachineInstanceMigrationRequired, Status: corev1.ConditionTrue,
				Reason: kubevirtv1.VirtualMachineInstanceReasonAutoMigrationDueToLiveUpdate,
			})
			return
		}
		vmi.Status.Conditions = slices.DeleteFunc(vmi.Status.Conditions, func(c kubevirtv1.VirtualMachineInstanceCondition) bool {
			return c.Type == kubevirtv1.VirtualMachineInstanceMigrationRequired
		})
	})
}

// migrating: a migration of the VM goes on, with pods that may not have the same NICs.
func (w *world) migrating() bool {
	s := w.state()
	return slices.ContainsFunc(w.vmims, func(m *kubevirtv1.VirtualMachineInstanceMigration) bool { return !vmimFinal(m) && w.target(m) != nil }) ||
		s.StartTimestamp != nil && s.EndTimestamp == nil && !s.Completed && !s.Failed
}
