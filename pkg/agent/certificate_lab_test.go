package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

// nodesAuthority signs for nodes, and for a southbound database whose files are in dir.
type nodesAuthority struct {
	pki.Authority
	dir string
}

// replace makes another authority, with which the database's certificate changes.
func (a *nodesAuthority) replace(t *testing.T) {
	t.Helper()
	next, err := pki.NewAuthority(rand.Reader, "nodes", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := next.Sign(rand.Reader, pki.Leaf{Name: "central", Usage: pki.ServerAndClient, Hosts: []string{ovntest.CentralAddress}, Key: key.Public()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.Authority = next
	for _, f := range []struct {
		name string
		b    []byte
	}{{pki.CAFile, pki.EncodeCertificates(next.Certificate)}, {pki.CertFile, cert}, {pki.KeyFile, secret}} { // the key last, see certifier
		if err := os.WriteFile(filepath.Join(a.dir, f.name), f.b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (a *nodesAuthority) certificates() Certificates {
	return Certificates{
		Authorities: func(context.Context) ([]byte, error) { return pki.EncodeCertificates(a.Certificate), nil },
		Sign: func(_ context.Context, request []byte) ([]byte, error) {
			name, key, err := pki.ParseRequest(request)
			if err != nil {
				return nil, err
			}
			return a.Sign(rand.Reader, pki.Leaf{Name: name, Usage: pki.Client, Key: key}, time.Now())
		},
	}
}

// A node whose agent keeps a certificate is a chassis by TLS, and stays one with the certificates that come after.
func TestNodeByTLS(t *testing.T) {
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	authority := &nodesAuthority{dir: t.TempDir()}
	authority.replace(t)
	c.Secure(t, authority.dir)
	n := newTestNode(t, c, "n1", 1)
	n.cfg.SBRemote, n.cfg.OVNTLSDir, n.certificates = ovntest.SecureSB, filepath.Join(t.TempDir(), "tls"), authority.certificates()
	n.start()
	registered := func() {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for strings.TrimSpace(c.Southbound(t, "--bare", "--columns=name", "list", "chassis")) != "n1" {
			if time.Now().After(deadline) {
				t.Fatalf("the node is no chassis: %v", n.agent.ready.err())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	registered()
	if err := n.agent.ready.err(); err != nil && strings.Contains(fmt.Sprint(err), compCertificate) {
		t.Error(err)
	}
	authority.replace(t)
	if err := n.agent.certifier.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Southbound(t, "del-connection") // with which all connections end
	c.Southbound(t, "chassis-del", "n1")
	c.Southbound(t, "set-connection", "role=ovn-controller", "pssl:6642:"+ovntest.CentralAddress)
	registered()
}
