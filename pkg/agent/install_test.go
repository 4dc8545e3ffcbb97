package agent

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

func newInstaller(t *testing.T) *installer {
	t.Helper()
	dir := t.TempDir()
	cfg := Defaults()
	cfg.CNIBinSource, cfg.CNIBinDir, cfg.CNIConfDir = filepath.Join(dir, "godwit-cni"), filepath.Join(dir, "bin"), filepath.Join(dir, "net.d")
	write(t, cfg.CNIBinSource, "version 1")
	return &installer{cfg: cfg}
}

func write(t *testing.T, path, contents string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(contents), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestInstall(t *testing.T) {
	i := newInstaller(t)
	bin, conf := filepath.Join(i.cfg.CNIBinDir, "godwit"), filepath.Join(i.cfg.CNIConfDir, "05-godwit.conflist")
	if _, missing, err := i.install(); err != nil || !cmp.Equal([]string{"portmap"}, missing) {
		t.Errorf("without the plugin portmap: missing %v (%v)", missing, err)
	}
	if err := errors.Join(os.Remove(bin), os.Remove(conf)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(i.cfg.CNIBinDir, "portmap"), "")
	changed, missing, err := i.install()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{bin, conf}, changed); diff != "" {
		t.Errorf("files written, in order (-want +got):\n%s", diff)
	}
	if len(missing) != 0 {
		t.Errorf("plugins left out: %v", missing)
	}
	requireConflist(t, conf)
	if changed, _, err := i.install(); err != nil || len(changed) > 0 {
		t.Errorf("installing again wrote %v (%v)", changed, err)
	}
	// A program that runs keeps its file: a new one is put in its place.
	old, err := os.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	write(t, i.cfg.CNIBinSource, "version 2")
	if changed, _, err := i.install(); err != nil || len(changed) != 1 {
		t.Errorf("installing another version wrote %v (%v)", changed, err)
	}
	first := make([]byte, 20)
	n, _ := old.Read(first)
	now, err := os.ReadFile(bin)
	if string(first[:n]) != "version 1" || string(now) != "version 2" || err != nil {
		t.Errorf("the running program reads %q, a new one %q (%v)", first[:n], now, err)
	}
	entries, err := os.ReadDir(i.cfg.CNIBinDir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d files in the directory of plugins (%v), want 2", len(entries), err)
	}
}

func requireConflist(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cniVersion": "1.0.0", "name": "godwit",
		"plugins": []any{
			map[string]any{"type": "godwit", "socket": "/run/godwit/cni.sock"},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	// With 1.1.0 runtimes ask for STATUS, and a portmap of before 1.6 fails every ADD.
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil || list.CNIVersion != "1.0.0" {
		t.Errorf("a runtime of today would speak %v with the plugins (%v), want 1.0.0", list, err)
	}
}

// What is in place stays so: what is taken away is put back, and a chained plugin that comes later is taken up.
func TestInstallIsKept(t *testing.T) {
	b, i := newBench(t), newInstaller(t)
	l := &nodeLoop{log: b.log, inputs: b.inputs, state: &nodeState{}, ready: newReadiness(compInstall), installer: i, wake: make(chan struct{}), installInterval: 10 * time.Millisecond}
	if err := l.install(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.run(ctx) }()
	bin, conf := filepath.Join(i.cfg.CNIBinDir, "godwit"), filepath.Join(i.cfg.CNIConfDir, confName)
	write(t, filepath.Join(i.cfg.CNIBinDir, "portmap"), "")
	if err := errors.Join(os.Remove(bin), os.Rename(conf, conf+".cilium_bak")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "plugin and configuration", func() error {
		_, err := os.Stat(bin)
		raw, confErr := os.ReadFile(conf)
		if err := errors.Join(err, confErr); err != nil {
			return err
		}
		if !strings.Contains(string(raw), "portmap") {
			return errors.New("portmap is not chained")
		}
		return nil
	})
	stop()
	if err := <-done; err != nil || len(l.missing) > 0 {
		t.Errorf("%v, and %v are missing", err, l.missing)
	}
}

func TestInstallFailsBeforeTheConfiguration(t *testing.T) {
	i := newInstaller(t)
	write(t, i.cfg.CNIBinDir, "a file where the directory should be")
	if _, _, err := i.install(); err == nil || !strings.Contains(err.Error(), "install CNI plugin") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(i.cfg.CNIConfDir); err == nil {
		t.Error("the configuration was written without the plugin")
	}
}
