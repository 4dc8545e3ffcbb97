package agent

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/wire"
)

// onSmallDisk runs f on a thread that sees a file system of 16 KiB at dir.
func onSmallDisk(t *testing.T, dir string, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, and the mount with it, ends here
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k")
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("mount a small disk (root is needed): %v", err)
	}
}

// A full disk: the error names the file, what was there stays whole, and it works when there is room again.
func TestInstallOnFullDisk(t *testing.T) {
	i := newInstaller(t)
	dir := t.TempDir()
	i.cfg.CNIBinDir, i.cfg.CNIConfDir = filepath.Join(dir, "bin"), filepath.Join(dir, "conf")
	onSmallDisk(t, dir, func() {
		if _, _, err := i.install(); err != nil {
			t.Errorf("with room: %v", err)
			return
		}
		conf, err := os.ReadFile(filepath.Join(i.cfg.CNIConfDir, confName))
		if err != nil {
			t.Error(err)
			return
		}
		write(t, i.cfg.CNIBinSource, strings.Repeat("version 2 ", 10_000))
		if _, _, err := i.install(); err == nil || !strings.Contains(err.Error(), "install CNI plugin") || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("on a full disk: %v, want it to name the plugin and the cause", err)
		}
		now, err := os.ReadFile(filepath.Join(i.cfg.CNIConfDir, confName))
		if err != nil || string(now) != string(conf) {
			t.Errorf("the configuration was %q and is %q (%v)", conf, now, err)
		}
		if old, err := os.ReadFile(filepath.Join(i.cfg.CNIBinDir, wire.PluginName)); err != nil || string(old) != "version 1" {
			t.Errorf("the plugin is %.20q (%v), want the old one whole", old, err)
		}
		write(t, i.cfg.CNIBinSource, "version 3")
		if changed, _, err := i.install(); err != nil || len(changed) != 1 {
			t.Errorf("with room again: %v (%v)", changed, err)
		}
	})
}
