package integration

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/godwit-cni/godwit/pkg/agent"
	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/controller"
	"github.com/godwit-cni/godwit/pkg/issuer"
	"github.com/godwit-cni/godwit/pkg/pki"
)

const installed = "godwit-system"

// issue runs an issuer with the controller's permissions until the test ends.
func (e *env) issue(t *testing.T) *issuer.Issuer {
	t.Helper()
	cfg := rest.CopyConfig(e.rest)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: controllerUser, Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	i, err := issuer.New(issuer.Config{
		Namespace: installed, AgentUser: agentUser, Hosts: []string{ownLoopback}, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return i
}

// secret waits for one.
func (e *env) secret(t *testing.T, name string) *corev1.Secret {
	t.Helper()
	var s corev1.Secret
	eventually(t, func() error { return e.api.Get(t.Context(), key(installed, name), &s) })
	return &s
}

// Two issuers make one set of certificates, a node gets its own and nobody else's, and a controller that makes the certificates itself reaches a database which waited for them.
func TestIssuer(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	first := e.issue(t)
	e.issue(t)
	server, admin := e.secret(t, issuer.Server), e.secret(t, issuer.Admin)
	if string(server.Data[pki.CAFile]) == string(admin.Data[pki.CAFile]) {
		t.Error("nodes and administrators have one authority")
	}
	var trusted corev1.ConfigMap
	eventually(t, func() error { return e.api.Get(t.Context(), key(installed, v1alpha1.OVNAuthorities), &trusted) })
	if trusted.Data[pki.CAFile] != string(server.Data[pki.CAFile]) {
		t.Error("nodes do not trust the server's authority")
	}

	from, err := agent.CertificatesAPI(e.as("n1"), installed)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := from.Sign(t.Context(), newRequest(t, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseCertificates(cert)
	if err != nil || certs[0].Subject.CommonName != "n1" {
		t.Errorf("the certificate is for %v, %v", certs, err)
	}
	if _, err := from.Sign(t.Context(), newRequest(t, "n2")); err == nil || !strings.Contains(err.Error(), `bound to node ["n1"]`) {
		t.Errorf("n1's agent asks for n2's certificate: %v", err)
	}
	if _, err := from.Authorities(t.Context()); err != nil {
		t.Error(err)
	}

	// Somebody else's approval makes nothing of a request that is not a node's own.
	forged := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "forged"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: v1alpha1.OVNSigner, Request: newRequest(t, "n2"), Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}
	if err := e.api.Create(t.Context(), forged); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		var c certificatesv1.CertificateSigningRequest
		if err := e.api.Get(t.Context(), key("", "forged"), &c); err != nil {
			return err
		}
		if len(c.Status.Conditions) != 1 || c.Status.Conditions[0].Type != certificatesv1.CertificateDenied {
			return fmt.Errorf("the request has conditions %v", c.Status.Conditions)
		}
		return nil
	})

	// A Secret that is deleted is made again, by the same authority, when anything happens.
	if err := e.api.Delete(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Sign(t.Context(), newRequest(t, "n1")); err != nil {
		t.Error(err)
	}
	again := e.secret(t, issuer.Admin)
	if string(again.Data[pki.CAFile]) != string(admin.Data[pki.CAFile]) || string(again.Data[pki.CertFile]) == string(admin.Data[pki.CertFile]) {
		t.Error("the Secret that was deleted is not a new one of the same authority")
	}
	e.controllerWaits(t, first)
}

// controllerWaits: a controller that makes certificates starts before the databases' servers, and serves when they have come.
func (e *env) controllerWaits(t *testing.T, from *issuer.Issuer) {
	t.Helper()
	var address [2]string
	var absent [2]net.Listener
	for i := range address {
		l, err := net.Listen("tcp", ownLoopback+":0")
		if err != nil {
			t.Fatal(err)
		}
		address[i], absent[i] = l.Addr().String(), l
	}
	e.start(t, func(c *controller.Config) {
		c.NBEndpoints, c.SBEndpoints, c.TLS, c.Issuing = []string{"ssl:" + address[0]}, []string{"ssl:" + address[1]}, from.AdminFiles(t.Context()), true
	})
	if conn, err := absent[0].Accept(); err != nil { // it has tried
		t.Fatal(err)
	} else if err := errors.Join(conn.Close(), absent[0].Close(), absent[1].Close()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range e.secret(t, issuer.Admin).Data {
		if err := os.WriteFile(dir+"/"+name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	here := func(f func() error) error { return f() }
	runGate(t, here, address[0], e.central.NB, dir)
	runGate(t, here, address[1], e.central.SB, dir)
	e.defaultSubnet(t)
	e.node(t, "n1")
	e.namespace(t, "pods", nil)
	e.pod(t, key("pods", "p"), "n1")
	e.served(t, key("pods", "p"))
}

func newRequest(t *testing.T, name string) []byte {
	t.Helper()
	k, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := pki.NewRequest(rand.Reader, k, name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
