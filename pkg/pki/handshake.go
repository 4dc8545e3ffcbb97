package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// ErrRefused is what the other side's certificate is refused with.
var ErrRefused = errors.New("certificate refused")

// ClientTLS is the configuration of a client that connects to any of hosts, which are names or addresses. now is asked at every handshake.
func (f *Files) ClientTLS(hosts []string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The server's certificate is judged below: by files that may have been replaced since, and with errors that say what to do.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := f.Check(now())
			if err != nil {
				return nil, err
			}
			return &m.Pair, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			m, err := f.Check(now()) // one's own too: the server would not say what is wrong with it
			if err != nil {
				return err
			}
			return f.verify(m, cs.PeerCertificates, peer{usage: x509.ExtKeyUsageServerAuth, hosts: serverNames(cs, hosts), now: now()})
		},
	}
}

// PeerTLS is the configuration of a node that connects to the node of that name: both show what they show as clients of the databases. A server of the databases does not pass for a
// node that way, nor a node for another. now is asked at every handshake.
func (f *Files) PeerTLS(node string, now func() time.Time) *tls.Config {
	cfg := f.ClientTLS(nil, now)
	cfg.MinVersion = tls.VersionTLS13
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		m, err := f.Check(now())
		if err != nil {
			return err
		}
		if err := f.verify(m, cs.PeerCertificates, peer{usage: x509.ExtKeyUsageClientAuth, now: now()}); err != nil {
			return err
		}
		if leaf := cs.PeerCertificates[0]; leaf.Subject.CommonName != node {
			return fmt.Errorf("%w: that of %s is not node %q's: another node answers there: does its Node have this address too?", ErrRefused, describe(leaf), node)
		}
		return nil
	}
	return cfg
}

// serverNames: of an address the handshake does not say which one was dialled; then all that may have been.
func serverNames(cs tls.ConnectionState, hosts []string) []string {
	if cs.ServerName != "" {
		return []string{cs.ServerName}
	}
	var out []string
	for _, h := range hosts {
		if _, err := netip.ParseAddr(h); err == nil {
			out = append(out, h)
		}
	}
	return out
}

// ServerTLS is the configuration of a server that lets nobody in whom its authorities have not signed as a client.
func (f *Files) ServerTLS(now func() time.Time) *tls.Config {
	return f.serverTLS(tls.VersionTLS12, now)
}

// PeerServerTLS is ServerTLS of a node that other nodes connect to with PeerTLS.
func (f *Files) PeerServerTLS(now func() time.Time) *tls.Config {
	return f.serverTLS(tls.VersionTLS13, now)
}

func (f *Files) serverTLS(least uint16, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: least,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m, err := f.Check(now())
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion: least, Certificates: []tls.Certificate{m.Pair}, ClientCAs: m.pool(),
				// Judged below, with errors that say what to do.
				ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
				VerifyConnection: func(cs tls.ConnectionState) error {
					return f.verify(m, cs.PeerCertificates, peer{usage: x509.ExtKeyUsageClientAuth, now: now()})
				},
			}, nil
		},
	}
}

// peer is what the other side must be.
type peer struct {
	usage x509.ExtKeyUsage
	// hosts are the names of which a server must have one; nil for a client.
	hosts []string
	now   time.Time
}

// verify says why the other side's certificates do not do.
func (f *Files) verify(m *Material, chain []*x509.Certificate, want peer) error {
	if len(chain) == 0 {
		return fmt.Errorf("%w: the other side has shown none", ErrRefused)
	}
	leaf := chain[0]
	if err := inTime(leaf, want.now); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: m.pool(), Intermediates: between, CurrentTime: want.now, KeyUsages: []x509.ExtKeyUsage{want.usage}})
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: that of %s is signed by %q, and %s has %s: give both sides certificates of one authority", ErrRefused, describe(leaf), leaf.Issuer.CommonName, f.CA, names(m.CAs))
	case err != nil:
		return fmt.Errorf("%w: that of %s: %w", ErrRefused, describe(leaf), err)
	case want.usage != x509.ExtKeyUsageServerAuth:
		return nil
	}
	for _, h := range want.hosts {
		if leaf.VerifyHostname(h) == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: that of %s is for %v %v, not for %v: another server answers there, or the certificate lacks a name: correct the remote or the server's certificate",
		ErrRefused, describe(leaf), leaf.DNSNames, leaf.IPAddresses, want.hosts)
}

// inTime says why a certificate is not valid now.
func inTime(c *x509.Certificate, now time.Time) error {
	const format = "2006-01-02T15:04:05Z"
	switch at := now.UTC().Format(format); {
	case now.Before(c.NotBefore):
		return fmt.Errorf("that of %s is valid from %s on, and this machine's clock says %s: set the clock, or that of the machine which signed", describe(c), c.NotBefore.UTC().Format(format), at)
	case now.After(c.NotAfter):
		return fmt.Errorf("that of %s expired at %s, and this machine's clock says %s: if the clock is right, renew it: docs/security.md says who does", describe(c), c.NotAfter.UTC().Format(format), at)
	}
	return nil
}

func describe(c *x509.Certificate) string { return fmt.Sprintf("%q", c.Subject.CommonName) }

func names(certs []*x509.Certificate) []string {
	out := make([]string, len(certs))
	for i, c := range certs {
		out[i] = fmt.Sprintf("%q", c.Subject.CommonName)
	}
	return out
}
