package agent

import (
	"context"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// signedPoll is how often a request is looked at; the controller signs within milliseconds.
const signedPoll = 250 * time.Millisecond

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
	name := csr.Name
	var cert []byte
	err = wait.PollUntilContextCancel(ctx, signedPoll, true, func(ctx context.Context) (bool, error) {
		csr, err := requests.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range csr.Status.Conditions {
			if (c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed) && c.Status == corev1.ConditionTrue {
				return false, fmt.Errorf("%s: %s", c.Reason, c.Message)
			}
		}
		cert = csr.Status.Certificate
		return len(cert) != 0, nil
	})
	if err != nil {
		return nil, fmt.Errorf("CertificateSigningRequest %s: %w: godwit-controller --ovn-issuer signs it, and its log says more", name, err)
	}
	return cert, nil
}
