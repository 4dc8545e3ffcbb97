// Package libvirt holds pkg/hypervisor against libvirt and QEMU themselves: two launchers, as KubeVirt's virt-launcher pods are inside, between which a VM migrates. The lab's own launchers have QEMU without
// libvirt; this is how the agent's other way, the one of real clusters, is known to work.
package libvirt
