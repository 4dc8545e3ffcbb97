package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/pki"
)

const (
	// certificateCheck is how often the node's certificate is looked at. An authority that is new is told to all for a week before it signs.
	certificateCheck = time.Hour
	// certificateTimeout bounds one attempt, in which the controller signs. It is long, because every attempt leaves a request in the API.
	certificateTimeout = time.Hour
	// certificateRetry is the longest time between attempts, certificateFruitless that after requests that were decided on and gave nothing: each leaves one in the API for an hour, and the same may be true of every node.
	certificateRetry     = time.Minute
	certificateFruitless = 15 * time.Minute
)

// errFruitless is that of a request that was denied, or whose certificate is of no use.
var errFruitless = errors.New("no certificate came of the request")

// Certificates is who gives the node its certificate: the cluster's API, in which the controller signs.
type Certificates struct {
	// Authorities are those whom the node is to trust, PEM-encoded.
	Authorities func(ctx context.Context) ([]byte, error)
	// Sign turns a request into a certificate, both PEM-encoded. It waits until that is decided.
	Sign func(ctx context.Context, request []byte) ([]byte, error)
}

// certifier keeps the node's certificate for the southbound database, and for other agents: it makes a key, which never leaves the node, has the controller sign for it, and does so anew when two thirds of the
// certificate's life have gone.
//
// Inputs: its files, ConfigMap godwit-ovn-ca. Outputs: the files in Config.OVNTLSDir; a CertificateSigningRequest.
type certifier struct {
	cfg     Config
	log     *slog.Logger
	from    Certificates
	now     func() time.Time
	ready   *readiness
	renewed func()
	expiry  *prometheus.GaugeVec
}

func newCertifier(cfg Config, log *slog.Logger, from Certificates, reg prometheus.Registerer) (*certifier, error) {
	c := &certifier{cfg: cfg, log: log, from: from, now: time.Now, expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "godwit_certificate_expiry_timestamp_seconds", Help: "When a certificate expires, in seconds since 1970.",
	}, []string{"certificate"})}
	if err := reg.Register(c.expiry); err != nil {
		return nil, fmt.Errorf("register metrics of certificates: %w", err)
	}
	return c, nil
}

func (c *certifier) run(ctx context.Context) {
	retry := certificateRetries()
	for {
		next := retry(c.pass(ctx), c.log)
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// certificateRetries says after each attempt when the next one is due.
func certificateRetries() func(err error, log *slog.Logger) time.Duration {
	failed, fruitless := backoff.NewExponentialBackOff(), backoff.NewExponentialBackOff()
	failed.InitialInterval, failed.MaxInterval, failed.MaxElapsedTime = time.Second, certificateRetry, 0
	fruitless.InitialInterval, fruitless.MaxInterval, fruitless.MaxElapsedTime = time.Second, certificateFruitless, 0
	return func(err error, log *slog.Logger) time.Duration {
		if err == nil {
			failed.Reset()
			fruitless.Reset()
			return certificateCheck
		}
		next := failed
		if errors.Is(err, errFruitless) {
			next = fruitless
		}
		wait := next.NextBackOff()
		log.Warn("the node's certificate is not as wanted", "error", err, "retry_in", wait.Round(time.Millisecond))
		return wait
	}
}

// pass makes one attempt. What is valid stays in use whatever fails.
func (c *certifier) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, certificateTimeout)
	defer cancel()
	files := pki.Dir(os.ReadFile, c.cfg.OVNTLSDir)
	if m, unusable := files.Check(c.now()); unusable != nil {
		c.ready.set(compCertificate, "the node has no valid certificate: godwit-controller --ovn-issuer signs one, does it run?")
	} else {
		c.tell(m) // before it is renewed, which waits for as long as nobody signs
	}
	err := c.renew(ctx)
	m, unusable := files.Check(c.now())
	if unusable != nil {
		c.ready.set(compCertificate, errors.Join(unusable, err).Error())
		return errors.Join(unusable, err)
	}
	c.tell(m)
	return err
}

// tell says that there is a certificate, and when it expires.
func (c *certifier) tell(m *pki.Material) {
	c.ready.set(compCertificate, "")
	c.expiry.WithLabelValues("node").Set(float64(m.Leaf().NotAfter.Unix()))
	c.expiry.WithLabelValues("node-ca").Set(float64(m.CAs[0].NotAfter.Unix()))
}

// renew replaces what is due.
func (c *certifier) renew(ctx context.Context) error {
	bundle, err := c.from.Authorities(ctx)
	if err != nil {
		return err
	}
	trusted, err := pki.ParseCertificates(bundle)
	if err != nil {
		return fmt.Errorf("authorities of OVN's nodes: %w", err)
	}
	files := pki.Dir(os.ReadFile, c.cfg.OVNTLSDir)
	have, err := files.Load()
	if why := c.due(have, err, trusted); why != "" {
		return c.replace(ctx, bundle, why)
	}
	if told, err := files.Read(files.CA); err == nil && bytes.Equal(told, bundle) {
		return nil
	}
	set, err := c.own(files)
	if err != nil {
		return err
	}
	set[pki.CAFile] = bundle
	return c.write(set, "the authorities have changed")
}

// due says why the node needs another certificate; empty if it does not.
func (c *certifier) due(have *pki.Material, unusable error, trusted []*x509.Certificate) string {
	if unusable != nil {
		return unusable.Error()
	}
	leaf := have.Leaf()
	if leaf.Subject.CommonName != c.cfg.NodeName {
		return fmt.Sprintf("the certificate is for chassis %q, and the node's is %q", leaf.Subject.CommonName, c.cfg.NodeName)
	}
	if pki.Due(leaf, c.now()) {
		return "two thirds of its life have gone"
	}
	for _, ca := range trusted {
		if leaf.CheckSignatureFrom(ca) == nil {
			return ""
		}
	}
	return fmt.Sprintf("its authority %q is not trusted any more", leaf.Issuer.CommonName)
}

// replace makes a key and has it certified.
func (c *certifier) replace(ctx context.Context, bundle []byte, why string) error {
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return err
	}
	request, err := pki.NewRequest(rand.Reader, key, c.cfg.NodeName)
	if err != nil {
		return err
	}
	cert, err := c.from.Sign(ctx, request)
	if err != nil {
		return err
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	return c.write(map[string][]byte{pki.CAFile: bundle, pki.CertFile: cert, pki.KeyFile: secret}, why)
}

// own reads certificate and key, to write them beside other authorities.
func (c *certifier) own(files *pki.Files) (map[string][]byte, error) {
	set := map[string][]byte{}
	for name, path := range map[string]string{pki.CertFile: files.Cert, pki.KeyFile: files.Key} {
		b, err := files.Read(path)
		if err != nil {
			return nil, err
		}
		set[name] = b
	}
	return set, nil
}

// current is the link to the directory that holds the files in use, as kubelets do it with Secrets: all files change at once. With one after the other OVS 3.1 could miss a certificate: it looks at that
// file only in the moment in which the key's has changed (lib/stream-ssl.c).
const current = "..data"

// write puts the files in place: a new directory, and then one link that is replaced.
func (c *certifier) write(set map[string][]byte, why string) (err error) {
	if err := os.MkdirAll(c.cfg.OVNTLSDir, 0o700); err != nil {
		return fmt.Errorf("make the directory of the node's certificate: %w", err)
	}
	at := func(name string) string { return filepath.Join(c.cfg.OVNTLSDir, name) }
	before, _ := os.Readlink(at(current)) // there is none yet
	dir, err := os.MkdirTemp(c.cfg.OVNTLSDir, "..version-")
	if err != nil {
		return fmt.Errorf("write the node's certificate: %w", err)
	}
	next := filepath.Base(dir)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write the node's certificate: %w", err), os.RemoveAll(at(next)))
		}
	}()
	for name, b := range set {
		if err := os.WriteFile(filepath.Join(at(next), name), b, 0o600); err != nil {
			return err
		}
	}
	if _, err := pki.Dir(os.ReadFile, at(next)).Check(c.now()); err != nil {
		return fmt.Errorf("%w: what the controller has signed is of no use: %w", errFruitless, err)
	}
	if err := replaceLink(next, at(current)); err != nil {
		return err
	}
	for name := range set {
		if err := replaceLink(filepath.Join(current, name), at(name)); err != nil {
			return err
		}
	}
	c.log.Info("the node has a new certificate", "why", why, "directory", c.cfg.OVNTLSDir)
	c.renewed()
	if before != "" && before != next {
		return os.RemoveAll(at(before))
	}
	return nil
}

// replaceLink makes a symbolic link, in the place of what is there.
func replaceLink(to, path string) error {
	if have, err := os.Readlink(path); err == nil && have == to {
		return nil
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
