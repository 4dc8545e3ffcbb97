package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"time"
)

// Names in a directory of certificates, those of a Kubernetes Secret of type kubernetes.io/tls.
const (
	CAFile   = "ca.crt"
	CertFile = "tls.crt"
	KeyFile  = "tls.key"
)

// Files are where a process has its certificates. They are read again for every connection: what is rotated counts from the next one on.
type Files struct {
	// Read is os.ReadFile, or reads what is kept elsewhere under these names.
	Read func(name string) ([]byte, error)
	// CA is a bundle of those whom to trust, Cert and Key are one's own.
	CA, Cert, Key string
}

// Dir are the files of a directory.
func Dir(read func(string) ([]byte, error), dir string) *Files {
	return &Files{Read: read, CA: filepath.Join(dir, CAFile), Cert: filepath.Join(dir, CertFile), Key: filepath.Join(dir, KeyFile)}
}

// Material is what the files have said.
type Material struct {
	CAs  []*x509.Certificate
	Pair tls.Certificate
}

// Leaf is one's own certificate.
func (m *Material) Leaf() *x509.Certificate { return m.Pair.Leaf }

func (m *Material) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range m.CAs {
		pool.AddCert(c)
	}
	return pool
}

// loadAttempts: certificate and key are two files, which may be replaced between two reads.
const loadAttempts = 3

// Load reads all files.
func (f *Files) Load() (*Material, error) {
	ca, err := f.Read(f.CA)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", f.CA, err)
	}
	cas, err := ParseCertificates(ca)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w: it must hold those who sign the other side's certificates", f.CA, err)
	}
	for i := 1; ; i++ {
		pair, err := f.pair()
		if err == nil {
			return &Material{CAs: cas, Pair: pair}, nil
		}
		if i == loadAttempts {
			return nil, err
		}
	}
}

func (f *Files) pair() (tls.Certificate, error) {
	cert, err := f.Read(f.Cert)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s: %w", f.Cert, err)
	}
	key, err := f.Read(f.Key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key %s: %w", f.Key, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with key %s: %w: they must be made together", f.Cert, f.Key, err)
	}
	return pair, nil
}

// Check loads the files and says what is wrong with one's own certificate at this time.
func (f *Files) Check(now time.Time) (*Material, error) {
	m, err := f.Load()
	if err != nil {
		return nil, err
	}
	if err := inTime(m.Leaf(), now); err != nil {
		return nil, fmt.Errorf("certificate %s: %w", f.Cert, err)
	}
	return m, nil
}
