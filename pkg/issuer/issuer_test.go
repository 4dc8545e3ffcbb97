package issuer

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/godwit-cni/godwit/pkg/pki"
)

const agent = "system:serviceaccount:godwit-system:godwit-agent"

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func request(t *testing.T, name string, dns ...string) []byte {
	t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: dns}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestJudge(t *testing.T) {
	client := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	extra := func(nodes ...string) map[string]certificatesv1.ExtraValue {
		return map[string]certificatesv1.ExtraValue{nodeExtra: nodes}
	}
	spec := func(change func(*certificatesv1.CertificateSigningRequestSpec)) certificatesv1.CertificateSigningRequestSpec {
		s := certificatesv1.CertificateSigningRequestSpec{Username: agent, Extra: extra("n1"), Usages: client, Request: request(t, "n1")}
		change(&s)
		return s
	}
	type change = func(*certificatesv1.CertificateSigningRequestSpec)
	for name, c := range map[string]struct {
		change  change
		refused string
	}{
		"its own":              {func(*certificatesv1.CertificateSigningRequestSpec) {}, ""},
		"another node's":       {func(s *certificatesv1.CertificateSigningRequestSpec) { s.Request = request(t, "n2") }, `chassis "n2"`},
		"a token of no node":   {func(s *certificatesv1.CertificateSigningRequestSpec) { s.Extra = nil }, "bound to node []"},
		"a token of two nodes": {func(s *certificatesv1.CertificateSigningRequestSpec) { s.Extra = extra("n1", "n2") }, "bound to node"},
		"another user":         {func(s *certificatesv1.CertificateSigningRequestSpec) { s.Username = "system:node:n1" }, "system:node:n1 asks"},
		"a server": {func(s *certificatesv1.CertificateSigningRequestSpec) {
			s.Usages = slices.Concat(client, []certificatesv1.KeyUsage{certificatesv1.UsageServerAuth})
		}, `usage "server auth"`},
		"no client":       {func(s *certificatesv1.CertificateSigningRequestSpec) { s.Usages = client[:1] }, "want \"client auth\""},
		"a server's name": {func(s *certificatesv1.CertificateSigningRequestSpec) { s.Request = request(t, "n1", "ovn") }, "alternative names"},
		"no request":      {func(s *certificatesv1.CertificateSigningRequestSpec) { s.Request = []byte("n1") }, "cannot be used"},
		"the reserved chassis": {func(s *certificatesv1.CertificateSigningRequestSpec) {
			s.Request, s.Extra = request(t, "godwit-none"), extra("godwit-none")
		}, "reserved"},
		"for longer than it is": {func(s *certificatesv1.CertificateSigningRequestSpec) {
			year := int32(365 * 24 * 3600)
			s.ExpirationSeconds = &year
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(&certificatesv1.CertificateSigningRequest{Spec: spec(c.change)}, agent)
			if c.refused != "" {
				if !strings.Contains(v.refused, c.refused) {
					t.Errorf("refused with %q, want it to say %s", v.refused, c.refused)
				}
				return
			}
			if v.refused != "" || v.leaf.Name != "n1" || v.leaf.Usage != pki.Client || v.leaf.Life > pki.LeafLife || len(v.leaf.Hosts) != 0 {
				t.Errorf("verdict %+v", v)
			}
		})
	}
}

// An authority's Secret says all of it, at every step of a rotation.
func TestAuthoritiesReadBack(t *testing.T) {
	a, err := pki.NewAuthorities(rand.Reader, "ca", start)
	if err != nil {
		t.Fatal(err)
	}
	next, former := false, false
	for now := start; now.Before(start.Add(2 * pki.AuthorityLife)); now = now.Add(3 * 24 * time.Hour) {
		rotated, changed, err := a.Rotate(rand.Reader, "ca", now)
		if err != nil {
			t.Fatal(err)
		}
		if a = rotated; !changed {
			continue
		}
		data, err := encode(a)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if !back.Signing.Certificate.Equal(a.Signing.Certificate) || (back.Next == nil) != (a.Next == nil) || len(back.Former) != len(a.Former) {
			t.Fatalf("on %s the Secret says %d former and next %v, want %d and %v", now, len(back.Former), back.Next, len(a.Former), a.Next)
		}
		next, former = next || a.Next != nil, former || len(a.Former) > 0
	}
	if !next || !former {
		t.Errorf("a successor was seen: %v, a predecessor: %v", next, former)
	}
	data, err := encode(a)
	if err != nil {
		t.Fatal(err)
	}
	data[pki.KeyFile] = []byte("lost")
	if _, err := decode(data); err == nil {
		t.Error("an authority without its key was read")
	}
}
