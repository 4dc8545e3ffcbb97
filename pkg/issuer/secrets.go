package issuer

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/pki"
)

// Keys of an authority's Secret beside those of kubernetes.io/tls: its successor, until that signs.
const (
	nextCert = "next.crt"
	nextKey  = "next.key"
)

// authorities reads those of a Secret, makes them if there are none, and does the step of their rotation that is due. One that cannot be read is an error, and is not replaced: all that it
// has signed would be worth nothing.
func (i *Issuer) authorities(ctx context.Context, name string) (pki.Authorities, error) {
	secret, err := i.api.CoreV1().Secrets(i.cfg.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return i.found(ctx, name)
	}
	if err != nil {
		return pki.Authorities{}, fmt.Errorf("read Secret %s/%s: %w", i.cfg.Namespace, name, err)
	}
	have, err := decode(secret.Data)
	if err != nil {
		return have, fmt.Errorf("Secret %s/%s: %w: restore it; or delete it, and every node and member of central needs a new certificate at once", i.cfg.Namespace, name, err)
	}
	next, changed, err := have.Rotate(rand.Reader, authorityName(name), i.now())
	if err != nil || !changed {
		return have, err
	}
	data, err := encode(next)
	if err != nil {
		return have, err
	}
	secret.Data = data
	if _, err := i.api.CoreV1().Secrets(i.cfg.Namespace).Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		return have, fmt.Errorf("rotate Secret %s/%s: %w", i.cfg.Namespace, name, err)
	}
	i.made("authority", name, "a step of its rotation was due")
	return next, nil
}

// found makes the first authority of a Secret.
func (i *Issuer) found(ctx context.Context, name string) (pki.Authorities, error) {
	a, err := pki.NewAuthorities(rand.Reader, authorityName(name), i.now())
	if err != nil {
		return a, err
	}
	data, err := encode(a)
	if err != nil {
		return a, err
	}
	if err := i.create(ctx, name, corev1.SecretTypeOpaque, data); err != nil {
		return a, err
	}
	i.made("authority", name, "there was none")
	return a, nil
}

func (i *Issuer) create(ctx context.Context, name string, kind corev1.SecretType, data map[string][]byte) error {
	_, err := i.api.CoreV1().Secrets(i.cfg.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/name": "godwit"}}, Type: kind, Data: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make Secret %s/%s: %w", i.cfg.Namespace, name, err)
	}
	return nil
}

func encode(a pki.Authorities) (map[string][]byte, error) {
	key, err := pki.EncodeKey(a.Signing.Key)
	if err != nil {
		return nil, err
	}
	// The first of ca.crt signs, the next, if it has a key here, will; the others have signed.
	data := map[string][]byte{pki.CertFile: pki.EncodeCertificates(a.Signing.Certificate), pki.KeyFile: key, pki.CAFile: pki.EncodeCertificates(a.Bundle()...)}
	if a.Next != nil {
		if data[nextKey], err = pki.EncodeKey(a.Next.Key); err != nil {
			return nil, err
		}
		data[nextCert] = pki.EncodeCertificates(a.Next.Certificate)
	}
	return data, nil
}

func decode(data map[string][]byte) (a pki.Authorities, err error) {
	if a.Signing, err = pki.ParseAuthority(data[pki.CertFile], data[pki.KeyFile]); err != nil {
		return a, err
	}
	if len(data[nextCert]) != 0 {
		next, err := pki.ParseAuthority(data[nextCert], data[nextKey])
		if err != nil {
			return a, fmt.Errorf("successor: %w", err)
		}
		a.Next = &next
	}
	bundle, err := pki.ParseCertificates(data[pki.CAFile])
	if err != nil {
		return a, fmt.Errorf("%s: %w", pki.CAFile, err)
	}
	for _, c := range bundle {
		if !c.Equal(a.Signing.Certificate) && (a.Next == nil || !c.Equal(a.Next.Certificate)) {
			a.Former = append(a.Former, c)
		}
	}
	return a, nil
}

// leaf keeps a Secret of central's own.
func (i *Issuer) leaf(ctx context.Context, name string, a pki.Authorities) error {
	want := pki.Leaf{Name: name, Hosts: i.cfg.Hosts, Usage: pki.ServerAndClient}
	secret, err := i.api.CoreV1().Secrets(i.cfg.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read Secret %s/%s: %w", i.cfg.Namespace, name, err)
	}
	missing, bundle := err != nil, pki.EncodeCertificates(a.Bundle()...)
	have, unusable := (&pki.Files{Read: reader(secret.Data), CA: pki.CAFile, Cert: pki.CertFile, Key: pki.KeyFile}).Load()
	why := leafDue(have, unusable, a, want, i.now())
	if why == otherHosts { // its names too, until it is renewed: while a setting changes two issuers want different ones, and would make it anew in turns
		want.Hosts = slices.Compact(slices.Sorted(slices.Values(slices.Concat(want.Hosts, hosts(have.Leaf())))))
	}
	data := maps.Clone(secret.Data)
	switch {
	case why != "":
		if data, err = i.sign(want, a.Signing); err != nil {
			return err
		}
	case bytes.Equal(data[pki.CAFile], bundle):
		i.tell(leafLabel(name), have.Leaf())
		return nil
	default:
		why = "its authorities have changed"
	}
	data[pki.CAFile] = bundle
	if missing {
		err = i.create(ctx, name, corev1.SecretTypeTLS, data)
	} else {
		secret.Data = data
		_, err = i.api.CoreV1().Secrets(i.cfg.Namespace).Update(ctx, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renew Secret %s/%s: %w", i.cfg.Namespace, name, err)
	}
	i.made("certificate", name, why)
	if made, err := pki.ParseCertificates(data[pki.CertFile]); err == nil {
		i.tell(leafLabel(name), made[0])
	}
	return nil
}

func leafLabel(secret string) string {
	if secret == Admin {
		return "admin"
	}
	return "server"
}

// sign makes a key and its certificate.
func (i *Issuer) sign(want pki.Leaf, by pki.Authority) (map[string][]byte, error) {
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	want.Key = key.Public()
	cert, err := by.Sign(rand.Reader, want, i.now())
	if err != nil {
		return nil, err
	}
	secret, err := pki.EncodeKey(key)
	return map[string][]byte{pki.CertFile: cert, pki.KeyFile: secret}, err
}

// reader reads what a Secret has as if it were files.
func reader(data map[string][]byte) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		if b, ok := data[name]; ok {
			return b, nil
		}
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
}

// bundle tells the nodes whom to trust.
func (i *Issuer) bundle(ctx context.Context, nodes pki.Authorities) error {
	text := string(pki.EncodeCertificates(nodes.Bundle()...))
	maps := i.api.CoreV1().ConfigMaps(i.cfg.Namespace)
	have, err := maps.Get(ctx, v1alpha1.OVNAuthorities, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.OVNAuthorities, Labels: map[string]string{"app.kubernetes.io/name": "godwit"}}, Data: map[string]string{pki.CAFile: text},
		}, metav1.CreateOptions{})
	case err == nil && have.Data[pki.CAFile] != text:
		have.Data = map[string]string{pki.CAFile: text}
		_, err = maps.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", i.cfg.Namespace, v1alpha1.OVNAuthorities, err)
	}
	return nil
}
