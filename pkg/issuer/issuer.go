// Package issuer is Godwit's own certificate authority for OVN's databases: it makes two authorities and the certificates that they sign, keeps all of them in Secrets, renews them,
// and signs what nodes ask for.
//
// Inputs: its own Secrets, CertificateSigningRequests of the signer godwit.dev/ovn-node.
// Outputs: Secrets godwit-ovn-ca, godwit-ovn-admin-ca (authorities with their keys, read by nobody else), godwit-ovn-server (ovsdb-server's for nodes), godwit-ovn-admin (the gate's and
// everybody's who comes by it); ConfigMap godwit-ovn-ca (what nodes trust); approval and certificate of the requests.
//
// Any number of issuers may run: none leads. What two do at once, one does, and the other reads: the API server refuses to make an object twice, or to change one that has changed.
package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/prometheus/client_golang/prometheus"
	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// Secrets of the issuer's namespace.
const (
	NodesAuthority  = "godwit-ovn-ca"
	AdminsAuthority = "godwit-ovn-admin-ca"
	Server          = "godwit-ovn-server"
	Admin           = "godwit-ovn-admin"
)

const (
	// checkEvery is how often everything is looked at: a Secret that somebody has deleted is there again within it.
	checkEvery = time.Minute
	// passTimeout bounds one look.
	passTimeout = 30 * time.Second
	maxRetry    = 20 * time.Second
)

// Config is what the issuer is told.
type Config struct {
	// Namespace holds the Secrets.
	Namespace string
	// AgentUser is who may ask for a node's certificate, from that node.
	AgentUser string
	// Hosts are the names and addresses by which the databases are reached.
	Hosts []string
	// Registerer receives the metrics.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Validate reports every error in c.
func (c Config) Validate() error {
	var errs []error
	if c.Namespace == "" {
		errs = append(errs, errors.New("issuer: no namespace for the Secrets"))
	}
	if c.AgentUser == "" {
		errs = append(errs, errors.New("issuer: nobody may ask for a node's certificate"))
	}
	if len(c.Hosts) == 0 {
		errs = append(errs, errors.New("issuer: no name or address of the databases' servers"))
	}
	return errors.Join(errs...)
}

// Issuer makes and signs.
type Issuer struct {
	cfg      Config
	api      kubernetes.Interface
	requests cache.SharedIndexInformer
	wake     chan struct{}
	now      func() time.Time
	expiry   *prometheus.GaugeVec
}

// New makes an issuer; nothing runs before Run.
func New(c Config, cfg *rest.Config) (*Issuer, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	api, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make Kubernetes client: %w", err)
	}
	lw := cache.NewListWatchFromClient(api.CertificatesV1().RESTClient(), "certificatesigningrequests", metav1.NamespaceNone, fields.OneTermEqualSelector("spec.signerName", v1alpha1.OVNSigner))
	i := &Issuer{
		cfg: c, api: api, wake: make(chan struct{}, 1), now: time.Now,
		requests: cache.NewSharedIndexInformer(lw, &certificatesv1.CertificateSigningRequest{}, 0, nil),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "godwit_certificate_expiry_timestamp_seconds", Help: "When a certificate expires, in seconds since 1970.",
		}, []string{"certificate"}),
	}
	if err := c.Registerer.Register(i.expiry); err != nil {
		return nil, fmt.Errorf("register metrics of certificates: %w", err)
	}
	poke := func(any) {
		select {
		case i.wake <- struct{}{}:
		default:
		}
	}
	_, err = i.requests.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, obj any) { poke(obj) }})
	return i, err
}

// Run issues until ctx ends. A failure is logged and tried again.
func (i *Issuer) Run(ctx context.Context) error {
	go i.requests.RunWithContext(ctx)
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.MaxElapsedTime = 100*time.Millisecond, maxRetry, 0
	for {
		next := checkEvery
		if err := i.pass(ctx); err != nil && ctx.Err() == nil {
			next = retry.NextBackOff()
			i.cfg.Logger.Warn("certificates for OVN's databases are not as wanted", "error", err, "retry_in", next.Round(time.Millisecond))
		} else {
			retry.Reset()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-i.wake:
		case <-time.After(next):
		}
	}
}

// pass looks at everything once.
func (i *Issuer) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	nodes, err := i.authorities(ctx, NodesAuthority)
	if err != nil {
		return err
	}
	admins, err := i.authorities(ctx, AdminsAuthority)
	if err != nil {
		return err
	}
	i.tell("node-ca", nodes.Signing.Certificate)
	i.tell("admin-ca", admins.Signing.Certificate)
	// One who fails does not keep the others from theirs.
	errs := []error{i.bundle(ctx, nodes), i.leaf(ctx, Server, nodes), i.leaf(ctx, Admin, admins)}
	for _, obj := range i.requests.GetStore().List() {
		if csr, ok := obj.(*certificatesv1.CertificateSigningRequest); ok {
			errs = append(errs, i.answer(ctx, csr.DeepCopy(), nodes.Signing))
		}
	}
	return errors.Join(errs...)
}

func (i *Issuer) tell(certificate string, c *x509.Certificate) {
	i.expiry.WithLabelValues(certificate).Set(float64(c.NotAfter.Unix()))
}

// raced says whether another issuer was faster; what it did is read at the next look, which is soon.
func raced(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

func (i *Issuer) made(kind, name, why string) {
	i.cfg.Logger.Info("certificate made", "kind", kind, "name", i.cfg.Namespace+"/"+name, "why", why)
}

// names of authorities in certificates.
func authorityName(secret string) string {
	if secret == AdminsAuthority {
		return "Godwit OVN administrators"
	}
	return "Godwit OVN nodes"
}

// trusts says whether one of the authorities has signed a certificate.
func trusts(bundle []*x509.Certificate, c *x509.Certificate) bool {
	for _, ca := range bundle {
		if c.CheckSignatureFrom(ca) == nil {
			return true
		}
	}
	return false
}

// covers says whether a certificate is for all of these names and addresses.
func covers(c *x509.Certificate, hosts []string) bool {
	for _, h := range hosts {
		if c.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

// otherHosts is why a certificate is made anew that lacks a name or an address.
const otherHosts = "the databases have other names"

// hosts are the names and addresses that a certificate is for.
func hosts(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// leafDue says why a certificate must be made anew; empty if it need not.
func leafDue(have *pki.Material, unusable error, a pki.Authorities, want pki.Leaf, now time.Time) string {
	switch {
	case unusable != nil:
		return unusable.Error()
	case pki.Due(have.Leaf(), now):
		return "two thirds of its life have gone"
	case !trusts(a.Bundle(), have.Leaf()):
		return "its authority is not trusted any more"
	case !covers(have.Leaf(), want.Hosts):
		return otherHosts
	case have.Leaf().Subject.CommonName != want.Name:
		return "it has another's name"
	}
	return ""
}
