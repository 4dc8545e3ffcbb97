package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"testing"
)

type ecdsaKey = ecdsa.PrivateKey

// refused are requests that a node has no business to make.
func refused(t *testing.T, key *ecdsa.PrivateKey) map[string][]byte {
	t.Helper()
	weak := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	other := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	request := func(r x509.CertificateRequest, by crypto.Signer) []byte {
		der := must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &r, by))
		return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der})
	}
	n1 := pkix.Name{CommonName: "n1"}
	forged := request(x509.CertificateRequest{Subject: n1}, key)
	block, _ := pem.Decode(forged)
	block.Bytes[len(block.Bytes)-1] ^= 1
	return map[string][]byte{
		"nothing":         nil,
		"two":             append(request(x509.CertificateRequest{Subject: n1}, key), request(x509.CertificateRequest{Subject: n1}, key)...),
		"no name":         request(x509.CertificateRequest{}, key),
		"an organization": request(x509.CertificateRequest{Subject: pkix.Name{CommonName: "n1", Organization: []string{"system:masters"}}}, key),
		"a DNS name":      request(x509.CertificateRequest{Subject: n1, DNSNames: []string{"ovn"}}, key),
		"an address":      request(x509.CertificateRequest{Subject: n1, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}, key),
		"RSA":             request(x509.CertificateRequest{Subject: n1}, weak),
		"P-384":           request(x509.CertificateRequest{Subject: n1}, other),
		"forged":          pem.EncodeToMemory(block),
	}
}
