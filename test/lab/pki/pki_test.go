package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestServerAndClientTrustEachOther makes a TLS connection with what the authority signed, as kubelet and API server do.
func TestServerAndClientTrustEachOther(t *testing.T) {
	now := time.Now()
	ca, err := NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(cert, key []byte, err error) tls.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.Certificate()) {
		t.Fatal("the authority's certificate is not PEM")
	}
	server := pair(ca.Server(now, "api", []string{"kubernetes"}, []netip.Addr{netip.MustParseAddr("fd00::1")}))
	client := pair(ca.Client(now, "kube-apiserver", "system:masters"))
	a, b := net.Pipe()
	srv := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	go func() { _ = srv.HandshakeContext(t.Context()); _ = srv.Close() }()
	cl := tls.Client(b, &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: pool, ServerName: "fd00::1"})
	if err := cl.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := srv.ConnectionState().PeerCertificates[0].Subject.Organization; len(got) != 1 || got[0] != "system:masters" {
		t.Errorf("the server sees groups %v, want system:masters", got)
	}
}
