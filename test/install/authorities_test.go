package install

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/pkg/issuer"
	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/test/lab"
)

// signs are the authorities' Secrets, what each signs for central, and the volumes in which central's pods have that.
var signs = map[string]struct{ secret, volume string }{
	issuer.NodesAuthority: {issuer.Server, "server-tls"}, issuer.AdminsAuthority: {issuer.Admin, "admin-tls"},
}

// authoritiesRotate gives both authorities a successor, which everybody trusts before it signs: who has a certificate goes on with it until it is renewed, as here central's members because somebody deletes their Secrets, then
// a node, and pods are heard all along. Agents are started again because they look once an hour, ovn-controllers and the controller so that they connect anew.
func authoritiesRotate(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	const days = 24 * time.Hour
	successors := map[string]pki.Authority{}
	start := time.Now()
	probes := watched(t, l, client, func() {
		for name := range signs {
			next, err := pki.NewAuthority(rand.Reader, name, start.Add(-8*days)) // so that it is due to sign as soon as it is a successor
			if err != nil {
				t.Fatal(err)
			}
			successors[name] = next
			changeSecret(t, client, name, func(data map[string][]byte) {
				data[pki.CAFile] = append(data[pki.CAFile], pki.EncodeCertificates(next.Certificate)...)
			})
		}
		eventually(t, func() error { return trusted(t, l, client, successors) })
		rollout(t, l, "daemonset/godwit-agent")
		eventually(t, func() error { return trustedByNodes(t, l, successors[issuer.NodesAuthority].Certificate) })
		t.Logf("everybody trusted the successors after %s", time.Since(start).Round(time.Second))
		for name, next := range successors {
			key, err := pki.EncodeKey(next.Key)
			if err != nil {
				t.Fatal(err)
			}
			changeSecret(t, client, name, func(data map[string][]byte) {
				data["next.crt"], data["next.key"] = pki.EncodeCertificates(next.Certificate), key
			})
		}
		eventually(t, func() error { return sign(t, client, successors) })
		for _, of := range signs {
			if err := client.CoreV1().Secrets(lab.Namespace).Delete(t.Context(), of.secret, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, func() error { return shown(t, l, client, successors) })
		t.Logf("central's members had the successors' certificates after %s", time.Since(start).Round(time.Second))
		rollout(t, l, "daemonset/ovn-controller", "deployment/godwit-controller")
		everyMemberSeesAll(t, l)
		well(t, l)
		nodeCertificate(t, l, client)
		if err := signedBy(t, l, "node1", successors[issuer.NodesAuthority].Certificate); err == nil {
			t.Error("the certificate of node1 was renewed though it was not due: what comes next shows nothing")
		}
		if _, err := l.Exec(t.Context(), "node1", "sh", "-c", "rm /etc/godwit/tls/*"); err != nil {
			t.Fatal(err)
		}
		rollout(t, l, "daemonset/godwit-agent")
		eventually(t, func() error { return signedBy(t, l, "node1", successors[issuer.NodesAuthority].Certificate) })
		rollout(t, l, "daemonset/ovn-controller")
		nodeCertificate(t, l, client)
		well(t, l)
	})
	for i := range probes {
		p := &probes[i]
		t.Logf("both authorities were replaced in %s: of %d packets to %s %d were lost, the longest time without one was %s", time.Since(start).Round(time.Second), p.Counts.Sent, p.Peer, p.Counts.Lost,
			p.Gap.Length().Round(time.Millisecond))
		if p.Gap.Open || p.Counts.Lost*1000 > p.Counts.Sent*besidePods {
			t.Errorf("%d of %d packets to %s were lost", p.Counts.Lost, p.Counts.Sent, p.Peer)
		}
	}
}

func changeSecret(t *testing.T, client kubernetes.Interface, name string, change func(map[string][]byte)) {
	t.Helper()
	eventually(t, func() error { // the issuer writes it too
		secret, err := client.CoreV1().Secrets(lab.Namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(secret.Data)
		_, err = client.CoreV1().Secrets(lab.Namespace).Update(t.Context(), secret, metav1.UpdateOptions{})
		return err
	})
}

// certificates are those of a file that every member of central has, as its kubelet has brought it: the image has nothing to read it with.
func certificates(t *testing.T, l *lab.Lab, client kubernetes.Interface, authority, file string) (all [][]*x509.Certificate, err error) {
	t.Helper()
	for i := range members {
		pod, err := client.CoreV1().Pods(lab.Namespace).Get(t.Context(), fmt.Sprintf("ovn-central-%d", i), metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		text, err := l.Exec(t.Context(), pod.Spec.NodeName, "cat", fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/kubernetes.io~secret/%s/%s", pod.UID, signs[authority].volume, file))
		if err != nil {
			return nil, err
		}
		certs, err := pki.ParseCertificates([]byte(text))
		if err != nil {
			return nil, err
		}
		all = append(all, certs)
	}
	return all, nil
}

// trusted is nil when every member of central trusts the successors.
func trusted(t *testing.T, l *lab.Lab, client kubernetes.Interface, successors map[string]pki.Authority) error {
	t.Helper()
	return everyMemberHas(t, l, client, successors, pki.CAFile, func(bundle []*x509.Certificate, next *x509.Certificate) error {
		if !slices.ContainsFunc(bundle, next.Equal) {
			return fmt.Errorf("it has %d authorities, and not this one", len(bundle))
		}
		return nil
	})
}

// sign is nil when the successors sign what is asked for.
func sign(t *testing.T, client kubernetes.Interface, successors map[string]pki.Authority) error {
	t.Helper()
	for name, next := range successors {
		secret, err := client.CoreV1().Secrets(lab.Namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		certs, err := pki.ParseCertificates(secret.Data[pki.CertFile])
		if err != nil {
			return fmt.Errorf("Secret %s: %w", name, err)
		}
		if !certs[0].Equal(next.Certificate) {
			return fmt.Errorf("the authority of Secret %s is the one of before", name)
		}
	}
	return nil
}

// shown is nil when every member of central has certificates of the successors.
func shown(t *testing.T, l *lab.Lab, client kubernetes.Interface, successors map[string]pki.Authority) error {
	t.Helper()
	return everyMemberHas(t, l, client, successors, pki.CertFile, func(certs []*x509.Certificate, next *x509.Certificate) error {
		return certs[0].CheckSignatureFrom(next)
	})
}

// everyMemberHas is nil when what every member of central has in a file is right for each successor.
func everyMemberHas(t *testing.T, l *lab.Lab, client kubernetes.Interface, successors map[string]pki.Authority, file string, right func(have []*x509.Certificate, next *x509.Certificate) error) error {
	t.Helper()
	for name, next := range successors {
		all, err := certificates(t, l, client, name, file)
		if err != nil {
			return err
		}
		for i, have := range all {
			if err := right(have, next.Certificate); err != nil {
				return fmt.Errorf("%s of ovn-central-%d, and the successor of %s: %w", file, i, name, err)
			}
		}
	}
	return nil
}

func nodeFile(t *testing.T, l *lab.Lab, node, file string) ([]*x509.Certificate, error) {
	t.Helper()
	text, err := l.Exec(t.Context(), node, "cat", "/etc/godwit/tls/"+file)
	if err != nil {
		return nil, err
	}
	return pki.ParseCertificates([]byte(text))
}

func trustedByNodes(t *testing.T, l *lab.Lab, authority *x509.Certificate) error {
	t.Helper()
	for _, node := range l.NodeNames() {
		bundle, err := nodeFile(t, l, node, pki.CAFile)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(bundle, authority.Equal) {
			return fmt.Errorf("%s does not trust the successor yet: it has %d authorities", node, len(bundle))
		}
	}
	return nil
}

// signedBy is nil if a node's certificate is an authority's.
func signedBy(t *testing.T, l *lab.Lab, node string, authority *x509.Certificate) error {
	t.Helper()
	certs, err := nodeFile(t, l, node, pki.CertFile)
	if err != nil {
		return err
	}
	return certs[0].CheckSignatureFrom(authority)
}
