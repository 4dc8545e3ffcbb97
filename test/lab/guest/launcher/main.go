// Command launcher runs one virtual machine in a launcher pod of the lab's KubeVirt stand-in. See package compute.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/godwit-cni/godwit/test/lab/guest/compute"
)

func main() { os.Exit(run()) } //nolint:forbidigo // main

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) //nolint:forbidigo // main
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c := compute.Config{Log: log, Console: os.Stdout}
	var firmware string
	flag.StringVar(&c.Dir, "dir", "/run/launcher", "directory of the launcher's sockets")
	flag.StringVar(&c.MonitorDir, "monitor-dir", "", "directory for a second socket of QEMU's machine protocol, for who wants to be told of migrations; none if empty")
	flag.StringVar(&c.QEMU, "qemu", "/usr/bin/qemu-system-x86_64", "program of QEMU")
	flag.StringVar(&firmware, "firmware", "/usr/share/qemu", "directories of QEMU's firmware, separated by commas")
	flag.StringVar(&c.Kernel, "kernel", "/guest/vmlinuz", "the guest's kernel")
	flag.StringVar(&c.Initramfs, "initramfs", "/guest/initramfs", "the guest's initial RAM disk")
	flag.StringVar(&c.ResolvConf, "resolv-conf", "/etc/resolv.conf", "resolver configuration to give to the guest")
	flag.Parse()
	c.Firmware = strings.Split(firmware, ",")
	status, err := compute.Run(ctx, c)
	if err != nil {
		log.Error("the launcher fails", "err", err)
		return max(1, status)
	}
	return status
}
