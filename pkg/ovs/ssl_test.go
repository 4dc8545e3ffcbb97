package ovs

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/pkg/vswitchdb"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// certificates writes a directory with a new certificate of an authority.
func certificates(t *testing.T, by pki.Authority, l pki.Leaf) string {
	t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l.Key = key.Public()
	cert, err := by.Sign(rand.Reader, l, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, b := range map[string][]byte{pki.CAFile: pki.EncodeCertificates(by.Certificate), pki.CertFile: cert, pki.KeyFile: secret} {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// ovn-controller reaches the southbound database with the certificate that the table SSL names, and the row is written when it differs and not otherwise.
func TestChassisByTLS(t *testing.T) {
	nodes, err := pki.NewAuthority(rand.Reader, "nodes", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	central := ovntest.Central(t)
	central.Secure(t, certificates(t, nodes, pki.Leaf{Name: "central", Usage: pki.ServerAndClient, Hosts: []string{ovntest.CentralAddress}}))
	host := ovntest.Host(t, central, "one")
	c := dial(t, host)
	files := func(dir string) *TLSFiles {
		return &TLSFiles{CA: filepath.Join(dir, pki.CAFile), Cert: filepath.Join(dir, pki.CertFile), Key: filepath.Join(dir, pki.KeyFile)}
	}
	secure := chassisOne
	secure.Remote, secure.EncapIP, secure.TLS = ovntest.SecureSB, host.UnderlayIPs[0].Addr().String(), files("/nowhere")
	if changed, err := c.EnsureChassis(t.Context(), secure); err != nil || len(changed) != 9 {
		t.Errorf("first EnsureChassis changed %v (%v), want 8 keys and ssl", changed, err)
	}
	secure.TLS = files(certificates(t, nodes, pki.Leaf{Name: "one", Usage: pki.Client}))
	if changed, err := c.EnsureChassis(t.Context(), secure); err != nil || cmp.Diff([]string{"ssl"}, changed) != "" {
		t.Errorf("EnsureChassis with other files changed %v (%v)", changed, err)
	}
	if changed, err := c.EnsureChassis(t.Context(), secure); err != nil || len(changed) != 0 {
		t.Errorf("EnsureChassis with the same files changed %v (%v), want nothing", changed, err)
	}
	var rows []vswitchdb.SSL
	if err := c.ovsdb.List(t.Context(), &rows); err != nil || len(rows) != 1 || rows[0].Certificate != secure.TLS.Cert {
		t.Errorf("table SSL has %+v (%v)", rows, err)
	}
	deadline := time.Now().Add(time.Minute)
	for strings.TrimSpace(central.Southbound(t, "--bare", "--columns=name", "list", "chassis")) != "one" {
		if time.Now().After(deadline) {
			t.Fatal("the chassis has not registered")
		}
		time.Sleep(20 * time.Millisecond)
	}
}
