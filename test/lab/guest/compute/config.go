package compute

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
)

// Config says where a launcher finds things. Paths are as the launcher sees them.
type Config struct {
	// Dir is for sockets; it exists, and its path is short.
	Dir string
	// MonitorDir is for a socket of QEMU's own, on which Godwit's agent is told of the VM's stop; empty: there is none.
	MonitorDir string
	// QEMU is the program; Firmware are the directories of its firmware.
	QEMU     string
	Firmware []string
	// Kernel and Initramfs are the guest.
	Kernel, Initramfs string
	// ResolvConf is the pod's resolver configuration, which the guest is given by DHCP.
	ResolvConf string
	// Console gets a copy of what the guest prints; nil is nowhere.
	Console io.Writer
	// Log must not be nil.
	Log *slog.Logger
}

// Validate reports everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	for what, path := range map[string]string{"directory": c.Dir, "QEMU": c.QEMU, "kernel": c.Kernel, "initramfs": c.Initramfs, "resolver configuration": c.ResolvConf} {
		if _, err := os.Stat(path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	return errors.Join(errs...)
}
