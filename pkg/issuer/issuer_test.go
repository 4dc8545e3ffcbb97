package issuer

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

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

// Two controllers have different lists of hosts while a setting changes. The certificates come to be for all of them, and are not made anew in turns.
func TestTwoListsOfHosts(t *testing.T) {
	api, writes := fake.NewClientset(), map[string]int{}
	api.PrependReactor("*", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if w, ok := a.(clienttesting.CreateAction); ok && (a.GetVerb() == "create" || a.GetVerb() == "update") { // an update has an object too
			if secret, ok := w.GetObject().(*corev1.Secret); ok {
				writes[secret.Name]++
			}
		}
		return false, nil, nil
	})
	issuer := func(hosts ...string) *Issuer {
		return &Issuer{
			cfg: Config{Namespace: "godwit-system", AgentUser: agent, Hosts: hosts, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}, api: api, now: func() time.Time { return start },
			requests: cache.NewSharedIndexInformer(&cache.ListWatch{}, &certificatesv1.CertificateSigningRequest{}, 0, nil),
			expiry:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "x", Help: "x"}, []string{"certificate"}),
		}
	}
	old, changed := issuer("192.0.2.1", "db.example", "192.0.2.3"), issuer("192.0.2.1", "db.example", "fd00::4")
	for range 3 {
		if err := errors.Join(old.pass(t.Context()), changed.pass(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{Server, Admin} {
		secret, err := api.CoreV1().Secrets("godwit-system").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made, err := pki.ParseCertificates(secret.Data[pki.CertFile])
		if err != nil {
			t.Fatal(err)
		}
		if !covers(made[0], []string{"192.0.2.1", "db.example", "192.0.2.3", "fd00::4"}) || writes[name] != 2 {
			t.Errorf("%s is for %v, and was written %d times, want it for all hosts after two", name, hosts(made[0]), writes[name])
		}
	}
}
