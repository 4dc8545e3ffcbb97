package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/guest/initramfs"
	"github.com/godwit-cni/godwit/test/lab/image"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// firstProcess is the package of the machine's /init.
const firstProcess = "./test/kernel/pid1"

// programs are those of packages.Ensure, or of this machine, that the virtual one has, with the libraries that they need. The shell is not busybox's, which prefers its own ip.
var programs = []string{
	"ovsdb-server", "ovsdb-tool", "ovsdb-client", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "ovs-appctl", "ovs-dpctl",
	"ovn-controller", "ovn-appctl",
	"ip", "bridge", "ethtool", "conntrack", "nft", "tcpdump", "bash", "busybox",
}

// schemas are those of the databases.
var schemas = []string{"usr/share/openvswitch/vswitch.ovsschema"}

// modules are loaded at boot. There is no modprobe: a kernel that would load one on demand finds it loaded.
var modules = []string{
	"virtio_pci", "virtio_net", "veth", "bridge", "tun", "dummy",
	"openvswitch", "geneve", "vport_geneve", "nf_conntrack_netlink", "sctp",
	"nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_chain_nat", "nft_fib_inet", "nft_limit", "nft_log", "nft_reject_inet", "nft_hash", "nft_numgen",
	"sch_htb", "sch_ingress", "cls_matchall", "act_police",
}

// writeDisk writes what the machine's kernel unpacks at boot.
func writeDisk(ctx context.Context, c Config, base *packages.Root, kernel packages.Kernel, disk string) error {
	files, err := systemFiles(ctx, base)
	if err != nil {
		return err
	}
	built, release, err := source.Programs(ctx, c.Log, append([]string{firstProcess}, c.Programs...)...)
	if err != nil {
		return err
	}
	defer release()
	files = append(files, image.File{Path: "/init", From: filepath.Join(built, filepath.Base(firstProcess))})
	for _, p := range c.Programs {
		files = append(files, image.File{Path: "/usr/bin/" + filepath.Base(p), From: filepath.Join(built, filepath.Base(p))})
	}
	f, err := os.Create(disk)
	if err != nil {
		return fmt.Errorf("write the virtual machine's disk: %w", err)
	}
	w := bufio.NewWriter(f)
	err = initramfs.System{Kernel: kernel, Modules: modules, Files: files}.Write(w)
	if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write the virtual machine's disk: %w", err)
	}
	return nil
}

func systemFiles(ctx context.Context, base *packages.Root) ([]image.File, error) {
	var files []image.File
	for _, name := range programs {
		from, err := base.Program(name)
		if err != nil {
			return nil, err
		}
		more, err := image.Program("/usr/bin/"+name, from, base.Libraries())
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	for _, name := range schemas {
		from, err := base.Path(name)
		if err != nil {
			return nil, err
		}
		files = append(files, image.File{Path: "/" + name, From: from, Mode: 0o644})
	}
	applets, err := base.Command(ctx, "busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", err)
	}
	for _, a := range strings.Fields(string(applets)) {
		files = append(files, image.File{Path: "/usr/bin/" + a, Link: "busybox"}) // what is there already stays
	}
	return append(files,
		image.File{Path: "/bin/sh", Link: "/usr/bin/bash"},
		image.File{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\n"), Mode: 0o644},
		image.File{Path: "/etc/protocols", Content: []byte("ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n"), Mode: 0o644},
	), nil
}
