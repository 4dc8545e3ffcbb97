package vm

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/test/kernel/control"
)

// TestBoot boots a machine whose kernel has the modules that the tests are about.
func TestBoot(t *testing.T) {
	m, err := Boot(t.Context(), Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	out, err := m.Run(t.Context(), control.Command{Args: []string{"ls", "/sys/module"}})
	if err != nil {
		t.Fatal(err)
	}
	loaded := strings.Fields(out)
	t.Log(loaded)
	out, err = m.Run(t.Context(), control.Command{Args: []string{"sh", "-c", "uname -a; free; df; ip a; ovs-vswitchd --version; nft list ruleset; cat /proc/uptime; dmesg | tail -30"}})
	t.Log(out, err)
	t.Log(m.Console(40))
}
