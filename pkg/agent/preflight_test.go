package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dropping is a host network with chains that drop.
type dropping struct {
	hostNetwork
	chains []string
}

func (d dropping) ForwardDrops(string) ([]string, error) { return d.chains, nil }

func TestPreflight(t *testing.T) {
	cfg := Config{CNIConfDir: t.TempDir()}
	for _, name := range []string{"00-other.conflist", "05-godwit.conflist", "10-later.conf", "00-notes.txt", ".00-hidden.conf"} {
		if err := os.WriteFile(filepath.Join(cfg.CNIConfDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	problems, err := preflight(cfg, dropping{chains: []string{"ip filter FORWARD"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.check)
		if p.remedy == "" {
			t.Errorf("%s: no remedy", p.what)
		}
	}
	if d := cmp.Diff([]string{checkForward, checkConflist}, got); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
	for i, says := range []string{"ip filter FORWARD", "00-other.conflist"} {
		if !strings.Contains(problems[i].what, says) {
			t.Errorf("%q does not name %s", problems[i].what, says)
		}
	}
	clean := Config{CNIConfDir: filepath.Join(t.TempDir(), "not there yet")}
	if problems, err := preflight(clean, dropping{}); err != nil || len(problems) != 0 {
		t.Errorf("a clean node: %v %v", problems, err)
	}
}
