package vm

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"

	"github.com/godwit-cni/godwit/test/lab/guest/bundle"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

// kernelArguments make an emulated machine boot fast.
const kernelArguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check random.trust_cpu=on"

// defaultMemoryMiB holds three nodes with their agents, the controller and OVN.
const defaultMemoryMiB = 2048

// processors of a machine. With two, emulated on an idle machine, the kernel's datapath of all nodes lost every packet that it had no flow for ("lost" in dpctl/show: ovs-vswitchd never got
// it; OVS 3.1, Linux 6.1, one socket for each processor); with one it was never seen. The cause is not known.
const processors = 1

// accelerators of QEMU.
const (
	kvm = "kvm"
	tcg = "tcg"
)

// hardware is a machine as QEMU is told of it.
type hardware struct {
	accelerator  string
	memoryMiB    int
	disk, serial string
	// tap is an existing link; empty: the machine has no network, and address is nothing to it.
	tap     string
	address netip.Prefix
}

func (h hardware) arguments(kernel string) []string {
	accel, cpu := "tcg,thread=multi,tb-size=512", "max"
	// Coarse timers: each interrupt costs an emulator dearly, and Go programs that do next to nothing ask for a hundred a second each. And page tables of four levels.
	clock := "tsc=reliable clocksource=tsc highres=off no5lvl"
	if h.accelerator == kvm {
		accel, cpu, clock = "kvm", "host", ""
	}
	boot := strings.Join(strings.Fields(kernelArguments+" "+clock), " ")
	if h.tap != "" {
		boot += " godwit.address=" + h.address.String()
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc,usb=off", "-accel", accel, "-cpu", cpu, "-smp", fmt.Sprint(processors),
		"-m", fmt.Sprint(cmp.Or(h.memoryMiB, defaultMemoryMiB)), "-kernel", kernel, "-initrd", h.disk, "-append", boot, "-serial", "file:" + h.serial,
	}
	if h.tap != "" {
		args = append(args, "-netdev", "tap,id=net,ifname="+h.tap+",script=no,downscript=no", "-device", "virtio-net-pci,netdev=net,romfile=")
	}
	return args
}

// qemu is a QEMU process.
type qemu struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	// ended is closed when it has, after exit was set.
	ended chan struct{}
	exit  error
}

// startQEMU starts a machine in a namespace. It ends with ctx, with the namespace, or when it is killed.
func startQEMU(ctx context.Context, ns *netns.Namespace, e *bundle.Emulator, h hardware) (*qemu, error) {
	q := &qemu{cmd: e.Command(ctx, h.arguments(e.Kernel.Image)...), ended: make(chan struct{})}
	q.cmd.Stderr = &q.stderr
	// This process may be killed: its machines must not survive it. The namespace's thread lives as long as the namespace. A group of its own: Ctrl-C is for the tests.
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := ns.Do(q.cmd.Start); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	go func() {
		err := q.cmd.Wait()
		q.exit = fmt.Errorf("%v: %s", err, cmp.Or(strings.TrimSpace(q.stderr.String()), "it said nothing")) //nolint:errorlint // it may be nil
		close(q.ended)
	}()
	return q, nil
}

// kill ends the process and waits until it has.
func (q *qemu) kill() {
	_ = q.cmd.Process.Kill() // it may have ended
	<-q.ended
}
