package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// signer is the controller, as the agent sees it.
type signer struct {
	authorities pki.Authorities
	// as is the name that it puts into certificates; that of the request if empty.
	as string
	// clock is the signer's own, ahead of the agent's by so much.
	clock     time.Duration
	now       time.Time
	signed    int
	fail      error
	certifier *certifier
	pokes     int
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	s := &signer{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	a, err := pki.NewAuthorities(rand.Reader, "nodes", s.now)
	if err != nil {
		t.Fatal(err)
	}
	s.authorities = a
	cfg := Config{NodeName: "n1", OVNTLSDir: filepath.Join(t.TempDir(), "tls")}
	from := Certificates{
		Authorities: func(context.Context) ([]byte, error) {
			return pki.EncodeCertificates(s.authorities.Bundle()...), s.fail
		},
		Sign: func(_ context.Context, request []byte) ([]byte, error) {
			name, key, err := pki.ParseRequest(request)
			if err != nil || s.fail != nil {
				return nil, errors.Join(err, s.fail)
			}
			if s.as != "" {
				name = s.as
			}
			s.signed++
			return s.authorities.Signing.Sign(rand.Reader, pki.Leaf{Name: name, Usage: pki.Client, Key: key}, s.now.Add(s.clock))
		},
	}
	if s.certifier, err = newCertifier(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), from, prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	s.certifier.ready, s.certifier.now, s.certifier.renewed = newReadiness(compCertificate), func() time.Time { return s.now }, func() { s.pokes++ }
	return s
}

// pass lets the certifier look once, and returns the certificate that is there then.
func (s *signer) pass(t *testing.T) *pki.Material {
	t.Helper()
	if err := s.certifier.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := pki.Dir(os.ReadFile, s.certifier.cfg.OVNTLSDir).Check(s.now)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCertificateIsMadeOnceAndRenewed(t *testing.T) {
	s := newSigner(t)
	first := s.pass(t)
	if cn := first.Leaf().Subject.CommonName; cn != "n1" || s.pokes != 1 {
		t.Errorf("the certificate is for %q, the node's loop was woken %d times", cn, s.pokes)
	}
	dir := s.certifier.cfg.OVNTLSDir
	for _, name := range []string{pki.KeyFile, pki.CertFile, pki.CAFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", name, info, err)
		}
	}
	s.now = s.now.Add(59 * 24 * time.Hour)
	if again := s.pass(t); !again.Leaf().Equal(first.Leaf()) || s.signed != 1 {
		t.Errorf("%d certificates after 59 of 90 days", s.signed)
	}
	s.now = s.now.Add(2 * 24 * time.Hour)
	second := s.pass(t)
	if second.Leaf().Equal(first.Leaf()) || s.signed != 2 || s.pokes != 2 {
		t.Errorf("%d certificates after 61 of 90 days, %d wakes", s.signed, s.pokes)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 5 { // three links, the link to the directory, the directory
		t.Errorf("%v is left in the directory, %v", entries, err)
	}
}

func TestCertificateFollowsTheAuthorities(t *testing.T) {
	s := newSigner(t)
	first := s.pass(t)
	rotate := func() {
		next, changed, err := s.authorities.Rotate(rand.Reader, "nodes", s.now)
		if err != nil || !changed {
			t.Fatalf("nothing to rotate on %s: %v", s.now, err)
		}
		s.authorities = next
	}
	// The successor is trusted as soon as it is told, beside the first, whose certificates go on.
	s.authorities.Signing.Certificate.NotBefore = s.authorities.Signing.Certificate.NotBefore.Add(-pki.AuthorityLife * 3)
	rotate()
	told := s.pass(t)
	if len(told.CAs) != 2 || !told.Leaf().Equal(first.Leaf()) || s.signed != 1 {
		t.Errorf("%d authorities are trusted, %d certificates were signed", len(told.CAs), s.signed)
	}
	s.now = s.now.Add(pki.Overlap + pki.Backdate)
	rotate()
	if m := s.pass(t); !m.Leaf().Equal(first.Leaf()) {
		t.Error("a certificate of an authority that is trusted was thrown away")
	}
	// An authority that is gone, with its Secret, leaves nothing of worth.
	lost, err := pki.NewAuthorities(rand.Reader, "nodes", s.now)
	if err != nil {
		t.Fatal(err)
	}
	s.authorities = lost
	if m := s.pass(t); m.Leaf().Equal(first.Leaf()) || s.signed != 2 {
		t.Error("a certificate of an authority that nobody trusts is kept")
	}
}

func TestWhatIsValidStaysInUse(t *testing.T) {
	s := newSigner(t)
	first := s.pass(t)
	s.now, s.fail = s.now.Add(70*24*time.Hour), errors.New("the API server is away")
	if err := s.certifier.pass(t.Context()); err == nil {
		t.Error("a certificate that could not be renewed is no error")
	}
	if err := s.certifier.ready.err(); err != nil {
		t.Errorf("the node is not ready though its certificate is valid: %v", err)
	}
	if m, err := pki.Dir(os.ReadFile, s.certifier.cfg.OVNTLSDir).Check(s.now); err != nil || !m.Leaf().Equal(first.Leaf()) {
		t.Errorf("the certificate is not there any more: %v", err)
	}
	s.now = s.now.Add(30 * 24 * time.Hour)
	if err := s.certifier.pass(t.Context()); err == nil || !strings.Contains(err.Error(), `"n1" expired at 2026-04-01`) || !strings.Contains(err.Error(), "the API server is away") {
		t.Errorf("an expired certificate: %v", err)
	}
	if s.certifier.ready.err() == nil {
		t.Error("a node without a valid certificate is ready")
	}
	s.fail = nil
	s.pass(t)
	if err := s.certifier.ready.err(); err != nil {
		t.Error(err)
	}
}

// A node whose certificate is due goes on with it, and says when it ends, while nobody signs another: its agent may have been started again meanwhile.
func TestCertificateIsToldBeforeItIsRenewed(t *testing.T) {
	s := newSigner(t)
	first := s.pass(t)
	s.now = s.now.Add(70 * 24 * time.Hour)
	s.certifier.ready, s.certifier.expiry = newReadiness(compCertificate), prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "expiry"}, []string{"certificate"})
	asked := make(chan struct{})
	s.certifier.from.Sign = func(ctx context.Context, _ []byte) ([]byte, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.certifier.pass(ctx) }()
	<-asked
	if err := s.certifier.ready.err(); err != nil {
		t.Errorf("the node is not ready though its certificate is valid: %v", err)
	}
	var told dto.Metric
	if err := s.certifier.expiry.WithLabelValues("node").Write(&told); err != nil {
		t.Fatal(err)
	}
	if want, got := float64(first.Leaf().NotAfter.Unix()), told.GetGauge().GetValue(); got != want {
		t.Errorf("the certificate ends at %.0f, told is %.0f", want, got)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("nobody has signed, and the pass ended with %v", err)
	}
}

func TestClockThatIsBehindTheSigners(t *testing.T) {
	s := newSigner(t)
	s.clock = 3 * time.Hour
	err := s.certifier.pass(t.Context())
	if err == nil || !strings.Contains(err.Error(), "valid from 2026-01-01T02:00:00Z on, and this machine's clock says 2026-01-01T00:00:00Z: set the clock") {
		t.Errorf("error %v", err)
	}
	s.clock = 50 * time.Minute
	s.pass(t)
}

// A node that was given another name takes a certificate of that name.
func TestCertificateOfAnotherChassis(t *testing.T) {
	s := newSigner(t)
	s.pass(t)
	s.certifier.cfg.NodeName = "n2"
	if cn := s.pass(t).Leaf().Subject.CommonName; cn != "n2" {
		t.Errorf("the certificate is for %q", cn)
	}
}

func TestRemotesAndCertificatesBelongTogether(t *testing.T) {
	for _, c := range []struct{ remote, dir, want string }{
		{"ssl:192.0.2.1:6642", "/etc/godwit/tls", ""},
		{"tcp:192.0.2.1:6642", "", ""},
		{"ssl:192.0.2.1:6642", "", "needs --ovn-tls-dir"},
		{"tcp:192.0.2.1:6642", "/etc/godwit/tls", "without TLS though there is --ovn-tls-dir"},
		{"ssl:192.0.2.1:6642,tcp:192.0.2.2:6642", "/etc/godwit/tls", `"tcp:192.0.2.2:6642" would be reached without TLS`},
		{"ssl:192.0.2.1:6642", "tls", "not an absolute path"},
	} {
		cfg := Defaults()
		cfg.NodeName, cfg.SBRemote, cfg.OVNTLSDir = "n1", c.remote, c.dir
		err := cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s in %q: %v, want %q", c.remote, c.dir, err, c.want)
		}
	}
}

// Requests that are denied come ever less often: each stays in the API for an hour, and what is wrong with one node's may be wrong with every node's.
func TestDeniedRequestsAreFew(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct {
		err         error
		least, most int
	}{{errors.New("the API server is away"), 500, 5000}, {fmt.Errorf("request: %w", errFruitless), 60, 150}} {
		retry, attempts := certificateRetries(), 0
		for day := time.Duration(0); day < 24*time.Hour; attempts++ {
			day += retry(c.err, log)
		}
		if attempts < c.least || attempts > c.most {
			t.Errorf("%v: %d attempts a day, want %d to %d", c.err, attempts, c.least, c.most)
		}
		if next := retry(nil, log); next != certificateCheck {
			t.Errorf("after one that succeeded the next is in %s", next)
		}
		if next := retry(c.err, log); next > 2*time.Second {
			t.Errorf("the first failure after one that succeeded is followed in %s", next)
		}
	}
}
