package pki

import (
	"crypto/x509"
	"fmt"
	"io"
	"time"
)

// Overlap is for how long everybody is told to trust a new authority before it signs: agents look every hour, kubelets bring Secrets to pods within minutes.
const Overlap = 7 * 24 * time.Hour

// Authorities are one that signs, its successor if there is one already, and those that signed before and whose certificates may still be in use.
type Authorities struct {
	Signing Authority
	// Next is nil until two thirds of Signing's life have gone.
	Next *Authority
	// Former are not expired, newest first.
	Former []*x509.Certificate
}

// NewAuthorities makes the first.
func NewAuthorities(random io.Reader, name string, now time.Time) (Authorities, error) {
	a, err := NewAuthority(random, name, now)
	return Authorities{Signing: a}, err
}

// Bundle is what everybody is to trust now.
func (s Authorities) Bundle() []*x509.Certificate {
	out := []*x509.Certificate{s.Signing.Certificate}
	if s.Next != nil {
		out = append(out, s.Next.Certificate)
	}
	return append(out, s.Former...)
}

// Rotate does the step that is due, if any: a successor is made and trusted; an Overlap later it signs, and its predecessor stays trusted until it expires. s is not changed.
func (s Authorities) Rotate(random io.Reader, name string, now time.Time) (out Authorities, changed bool, err error) {
	out = Authorities{Signing: s.Signing, Next: s.Next}
	for _, c := range s.Former {
		if now.After(c.NotAfter) {
			changed = true
			continue
		}
		out.Former = append(out.Former, c)
	}
	switch {
	case s.Next == nil && Due(s.Signing.Certificate, now):
		next, err := NewAuthority(random, name, now)
		if err != nil {
			return s, false, fmt.Errorf("make the successor of %s: %w", s.Signing.Certificate.Subject.CommonName, err)
		}
		out.Next, changed = &next, true
	case s.Next != nil && now.Sub(s.Next.Certificate.NotBefore) >= Overlap+Backdate:
		out.Signing, out.Next, changed = *s.Next, nil, true
		if now.Before(s.Signing.Certificate.NotAfter) {
			out.Former = append([]*x509.Certificate{s.Signing.Certificate}, out.Former...)
		}
	}
	return out, changed, nil
}
