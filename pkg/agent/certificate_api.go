package agent

import (
	"context"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// A request is looked at after signedPoll, and then less and less often: the controller signs within milliseconds, if it runs.
const (
	signedPoll    = 250 * time.Millisecond
	maxSignedPoll = 10 * time.Second
)

// CertificatesAPI is the cluster's API as the giver of a node's certificate. It makes no request itself.
func CertificatesAPI(cfg *rest.Config, namespace string) (Certificates, error) {
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return Certificates{}, fmt.Errorf("make Kubernetes client: %w", err)
	}
	return Certificates{
		Authorities: func(ctx context.Context) ([]byte, error) {
			m, err := clients.CoreV1().ConfigMaps(namespace).Get(ctx, v1alpha1.OVNAuthorities, metav1.GetOptions{})
			if err != nil {
				return nil, fmt.Errorf("read ConfigMap %s/%s, which godwit-controller --ovn-issuer makes: %w", namespace, v1alpha1.OVNAuthorities, err)
			}
			return []byte(m.Data[pki.CAFile]), nil
		},
		Sign: func(ctx context.Context, request []byte) ([]byte, error) { return sign(ctx, clients, request) },
	}, nil
}

func sign(ctx context.Context, clients kubernetes.Interface, request []byte) ([]byte, error) {
	requests := clients.CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "godwit-ovn-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: v1alpha1.OVNSigner, Request: request, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	for pause := signedPoll; ; pause = min(2*pause, maxSignedPoll) {
		if cert, err := decided(csr); len(cert) != 0 || err != nil {
			return cert, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("CertificateSigningRequest %s is not signed: %w: godwit-controller --ovn-issuer signs it, does it run?", csr.Name, ctx.Err())
		case <-time.After(pause):
		}
		// The same request for as long as it is there: the API keeps those that nobody decides on for a day.
		next, err := requests.Get(ctx, csr.Name, metav1.GetOptions{})
		switch {
		case err == nil:
			csr = next
		case apierrors.IsNotFound(err):
			return nil, fmt.Errorf("CertificateSigningRequest %s was deleted", csr.Name)
		}
	}
}

// decided is the certificate, an error if there will be none, and neither before that is known.
func decided(csr *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	for _, c := range csr.Status.Conditions {
		if (c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed) && c.Status == corev1.ConditionTrue {
			return nil, fmt.Errorf("CertificateSigningRequest %s: %w: %s: %s", csr.Name, errFruitless, c.Reason, c.Message)
		}
	}
	return csr.Status.Certificate, nil
}
