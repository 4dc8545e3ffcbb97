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
)

// NewRequest asks for a certificate with this common name, PEM-encoded.
func NewRequest(random io.Reader, key crypto.Signer, name string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(random, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request for %s: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}), nil
}

// ParseRequest reads a request that asks for a common name and nothing else, and whose sender has the key.
func ParseRequest(text []byte) (name string, key crypto.PublicKey, err error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemRequest || len(rest) != 0 {
		return "", nil, errors.New("it is not one certificate request in PEM")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "", nil, err
	}
	if err := r.CheckSignature(); err != nil {
		return "", nil, fmt.Errorf("it is not signed with its own key: %w", err)
	}
	if public, ok := r.PublicKey.(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() {
		return "", nil, errors.New("its key is not ECDSA on P-256")
	}
	if n := len(r.DNSNames) + len(r.IPAddresses) + len(r.EmailAddresses) + len(r.URIs); n != 0 {
		return "", nil, fmt.Errorf("it asks for %d alternative names, and a node's certificate has none", n)
	}
	if r.Subject.CommonName == "" || len(r.Subject.Names) != 1 {
		return "", nil, fmt.Errorf("its subject is %q, want a common name alone", r.Subject)
	}
	return r.Subject.CommonName, r.PublicKey, nil
}
