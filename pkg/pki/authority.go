// Package pki makes and checks the certificates by which the parts of Godwit know one another at OVN's databases: values in, values out. It reads no file and has no clock of its own.
//
// There are two authorities. That of the nodes signs ovsdb-server's certificate and one of every node, whose common name is the node's chassis: OVN's RBAC compares it. The admin
// authority signs whoever may write the northbound database and all of the southbound one. Neither trusts what the other has signed.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// How long certificates are valid, and by how much they are dated back for machines whose clocks are behind.
const (
	AuthorityLife = 10 * 365 * 24 * time.Hour
	LeafLife      = 90 * 24 * time.Hour
	Backdate      = time.Hour
)

// Types of PEM blocks.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemRequest     = "CERTIFICATE REQUEST"
)

// Usage is what a certificate is for.
type Usage int

// A node's certificate is a client's alone: it cannot play the server for another node. Central's own is both, as members of a raft cluster are.
const (
	Client Usage = iota
	ServerAndClient
)

func (u Usage) extended() []x509.ExtKeyUsage {
	if u == ServerAndClient {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// Authority signs. It is not changed once it is made.
type Authority struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// NewKey makes a key. OVS's OpenSSL takes ECDSA on P-256 as well as RSA; random is crypto/rand.Reader.
func NewKey(random io.Reader) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// NewAuthority makes an authority that signs itself, with a key of its own.
func NewAuthority(random io.Reader, name string, now time.Time) (Authority, error) {
	key, err := NewKey(random)
	if err != nil {
		return Authority{}, err
	}
	number, err := serial(random)
	if err != nil {
		return Authority{}, err
	}
	// Two authorities of one name must not be taken for each other: the name has the serial number in it.
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: fmt.Sprintf("%s %x", name, number.Bytes()[:4])},
		NotBefore: now.Add(-Backdate), NotAfter: now.Add(AuthorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return Authority{}, fmt.Errorf("sign authority %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Authority{}, fmt.Errorf("read authority %s back: %w", name, err)
	}
	return Authority{Certificate: cert, Key: key}, nil
}

// Leaf is a certificate that is wanted.
type Leaf struct {
	// Name is the common name.
	Name string
	// Hosts are names and addresses of a server.
	Hosts []string
	Usage Usage
	Key   crypto.PublicKey
	// Life is LeafLife if 0. It never ends after its authority's.
	Life time.Duration
}

// Sign makes the certificate, PEM-encoded.
func (a Authority) Sign(random io.Reader, l Leaf, now time.Time) ([]byte, error) {
	number, err := serial(random)
	if err != nil {
		return nil, err
	}
	if l.Life == 0 {
		l.Life = LeafLife
	}
	until := now.Add(l.Life)
	if until.After(a.Certificate.NotAfter) {
		until = a.Certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: l.Name}, NotBefore: now.Add(-Backdate), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.Usage.extended(), BasicConstraintsValid: true,
	}
	for _, h := range l.Hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(random, template, a.Certificate, l.Key, a.Key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", l.Name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), nil
}

// serial is a random number of 127 bits whose first byte is not 0.
func serial(random io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

// EncodeKey is the key in PKCS #8, PEM-encoded.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// EncodeCertificates is a bundle of certificates, PEM-encoded.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return out
}

// ParseCertificates reads a bundle, which has one certificate at least.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != pemCertificate {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in PEM in it")
	}
	return out, nil
}

// ParseAuthority reads an authority that EncodeCertificates and EncodeKey have written.
func ParseAuthority(cert, key []byte) (Authority, error) {
	certs, err := ParseCertificates(cert)
	if err != nil {
		return Authority{}, fmt.Errorf("certificate of the authority: %w", err)
	}
	block, _ := pem.Decode(key)
	if block == nil || block.Type != pemKey {
		return Authority{}, errors.New("key of the authority: it is not in PEM, PKCS #8")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Authority{}, fmt.Errorf("key of the authority: %w", err)
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return Authority{}, fmt.Errorf("key of the authority: a %T cannot sign", parsed)
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certs[0].PublicKey) {
		return Authority{}, errors.New("key of the authority: it is not the certificate's")
	}
	return Authority{Certificate: certs[0], Key: signer}, nil
}

// Due says whether a certificate wants to be made anew: two thirds of its life have gone.
func Due(c *x509.Certificate, now time.Time) bool { return !now.Before(RenewAt(c)) }

// RenewAt is when two thirds of a certificate's life have gone.
func RenewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}
