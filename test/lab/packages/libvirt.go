package packages

import (
	"context"
	"log/slog"
)

// libvirt is what KubeVirt's launchers have between themselves and QEMU. QEMU itself is in the tree of EnsureVM.
func libvirt() set {
	return set{kind: "libvirt-packages", size: "10 MB", wanted: []want{
		{name: "libvirt-daemon", program: "libvirtd"},
		{name: "libvirt-daemon-driver-qemu", file: "usr/lib/*-linux-gnu*/libvirt/connection-driver/libvirt_driver_qemu.so"},
		{name: "libvirt-clients", program: "virsh"},
	}}
}

// EnsureLibvirt returns the tree with libvirt and virsh, downloading and unpacking what is not cached yet (about 5 MB). It needs no privileges.
func EnsureLibvirt(ctx context.Context, log *slog.Logger) (*Root, error) {
	return libvirt().ensure(ctx, log)
}
