package issuer

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// nodeExtra is what the API server says of a token that is bound to a pod: the pod's node. Who asks cannot write it.
const nodeExtra = "authentication.kubernetes.io/node-name"

// minLife is the shortest life that may be asked for, as in the API.
const minLife = 10 * time.Minute

// verdict is what becomes of a request.
type verdict struct {
	leaf pki.Leaf
	// refused says why it is; empty if it is not.
	refused string
}

// judge decides on a request: from a node's agent, on that node, for its own chassis, as a client. It is pure.
func judge(csr *certificatesv1.CertificateSigningRequest, agent string) verdict {
	refuse := func(format string, args ...any) verdict { return verdict{refused: fmt.Sprintf(format, args...)} }
	if csr.Spec.Username != agent {
		return refuse("%s asks, and %s alone may", csr.Spec.Username, agent)
	}
	name, key, err := pki.ParseRequest(csr.Spec.Request)
	if err != nil {
		return refuse("the request cannot be used: %v", err)
	}
	if nodes := csr.Spec.Extra[nodeExtra]; !slices.Equal(nodes, certificatesv1.ExtraValue{name}) {
		return refuse("it is for chassis %q, and the token of who asks is bound to node %q: an agent gets its own node's alone", name, []string(nodes))
	}
	if name == string(ident.NoChassis) {
		return refuse("%s is reserved for ports that no node may carry", name)
	}
	for _, u := range csr.Spec.Usages {
		if u != certificatesv1.UsageClientAuth && u != certificatesv1.UsageDigitalSignature {
			return refuse("usage %q is not a node's: want %q", u, certificatesv1.UsageClientAuth)
		}
	}
	if !slices.Contains(csr.Spec.Usages, certificatesv1.UsageClientAuth) {
		return refuse("usages are %v, want %q", csr.Spec.Usages, certificatesv1.UsageClientAuth)
	}
	return verdict{leaf: pki.Leaf{Name: name, Usage: pki.Client, Key: key, Life: life(csr.Spec.ExpirationSeconds)}}
}

// life is what is asked for, within bounds.
func life(seconds *int32) time.Duration {
	if seconds == nil {
		return pki.LeafLife
	}
	return min(max(time.Duration(*seconds)*time.Second, minLife), pki.LeafLife)
}

// answer approves and signs a request, or denies it. What another has decided stays: an administrator may deny one, and approve none for us that judge would not.
func (i *Issuer) answer(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, by pki.Authority) error {
	if len(csr.Status.Certificate) != 0 || has(csr, certificatesv1.CertificateDenied) || has(csr, certificatesv1.CertificateFailed) {
		return nil
	}
	requests, v := i.api.CertificatesV1().CertificateSigningRequests(), judge(csr, i.cfg.AgentUser)
	if !has(csr, certificatesv1.CertificateApproved) {
		decided := certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "NodeOwn", Message: "an agent asks for the certificate of its own node's chassis"}
		if v.refused != "" {
			decided.Type, decided.Reason, decided.Message = certificatesv1.CertificateDenied, "NotItsOwn", v.refused
		}
		csr.Status.Conditions = append(csr.Status.Conditions, decided)
		next, err := requests.UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
		if err != nil {
			return i.unlessRaced(csr, "decide on", err)
		}
		csr = next
		if v.refused != "" {
			i.cfg.Logger.Warn("a request for a certificate is denied", "request", csr.Name, "user", csr.Spec.Username, "uid", types.UID(csr.Spec.UID), "reason", v.refused)
			return nil
		}
	} else if v.refused != "" {
		csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "NotItsOwn", Message: v.refused,
		})
		_, err := requests.UpdateStatus(ctx, csr, metav1.UpdateOptions{})
		return i.unlessRaced(csr, "refuse", err)
	}
	cert, err := by.Sign(rand.Reader, v.leaf, i.now())
	if err != nil {
		return err
	}
	csr.Status.Certificate = cert
	if _, err := requests.UpdateStatus(ctx, csr, metav1.UpdateOptions{}); err != nil {
		return i.unlessRaced(csr, "sign", err)
	}
	i.cfg.Logger.Info("signed a node's certificate", "node", v.leaf.Name, "request", csr.Name)
	return nil
}

func (i *Issuer) unlessRaced(csr *certificatesv1.CertificateSigningRequest, what string, err error) error {
	if err == nil || raced(err) { // its new state comes by the watch
		return nil
	}
	return fmt.Errorf("%s CertificateSigningRequest %s: %w", what, csr.Name, err)
}

func has(csr *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
}
