package pki

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// disk is a directory of certificates.
type disk map[string][]byte

func (d disk) read(name string) ([]byte, error) {
	if b, ok := d[name]; ok {
		return b, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (d disk) files() *Files { return Dir(d.read, "/tls") }

func newDisk(t *testing.T, trusted []*x509.Certificate, by Authority, l Leaf, now time.Time) disk {
	t.Helper()
	key := must[*ecdsaKey](t)(NewKey(rand.Reader))
	l.Key = key.Public()
	return disk{
		"/tls/ca.crt": EncodeCertificates(trusted...), "/tls/tls.crt": must[[]byte](t)(by.Sign(rand.Reader, l, now)), "/tls/tls.key": must[[]byte](t)(EncodeKey(key)),
	}
}

// shake makes a handshake and lets the client read a byte: TLS 1.3 tells a client only then that it is refused.
func shake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	done := make(chan error, 1)
	go func() {
		b, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		s := tls.Server(b, server)
		if err = s.HandshakeContext(t.Context()); err == nil {
			_, err = s.Write([]byte{1})
		}
		_ = b.Close()
		done <- err
	}()
	c := tls.Client(a, client)
	clientErr = c.HandshakeContext(t.Context())
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	_ = a.Close()
	return clientErr, <-done
}

func at(now time.Time) func() time.Time { return func() time.Time { return now } }

func TestHandshake(t *testing.T) {
	ours, theirs := must[Authority](t)(NewAuthority(rand.Reader, "ours", start)), must[Authority](t)(NewAuthority(rand.Reader, "theirs", start))
	trust := []*x509.Certificate{ours.Certificate}
	node := newDisk(t, trust, ours, Leaf{Name: "n1", Usage: Client}, start)
	server := newDisk(t, trust, ours, Leaf{Name: "central", Hosts: []string{"ovn.godwit", "192.0.2.1"}, Usage: ServerAndClient}, start)
	foreign := newDisk(t, trust, theirs, Leaf{Name: "n1", Usage: Client}, start)
	twins := disk{"/tls/ca.crt": node["/tls/ca.crt"], "/tls/tls.crt": node["/tls/tls.crt"], "/tls/tls.key": server["/tls/tls.key"]}
	late := start.Add(LeafLife + time.Minute)
	for _, c := range []struct {
		name                 string
		client, server       disk
		host                 string
		clientNow, serverNow time.Time
		// What the error of either side says; both empty: there is none.
		clientSays, serverSays string
	}{
		{name: "by name", client: node, server: server, host: "ovn.godwit"},
		{name: "by address", client: node, server: server, host: "192.0.2.1"},
		{name: "another name", client: node, server: server, host: "other", clientSays: `"central" is for [ovn.godwit] [192.0.2.1], not for [other]: another server answers there`},
		{name: "another address", client: node, server: server, host: "192.0.2.2", clientSays: "not for [192.0.2.2]"},
		{name: "a node plays the server", client: node, server: node, host: "ovn.godwit", clientSays: "incompatible key usage"},
		{name: "client of another authority", client: foreign, server: server, host: "ovn.godwit", serverSays: `"n1" is signed by "theirs `},
		{name: "server of another authority", client: node, server: foreign, host: "ovn.godwit", clientSays: "/tls/ca.crt has [\"ours "},
		{name: "client expired", client: node, server: server, host: "ovn.godwit", serverNow: late, clientNow: start, serverSays: "/tls/tls.crt: that of \"central\" expired at 2026-04-01T00:00:00Z, and this machine's clock says 2026-04-01T00:01:00Z"},
		{name: "client does not show what expired", client: node, server: server, host: "ovn.godwit", clientNow: late, clientSays: "/tls/tls.crt: that of \"n1\" expired"},
		{name: "clock behind", client: node, server: server, host: "ovn.godwit", clientNow: start.Add(-2 * time.Hour), clientSays: "valid from 2025-12-31T23:00:00Z on, and this machine's clock says 2025-12-31T22:00:00Z: set the clock"},
		{name: "clock a little behind", client: node, server: server, host: "ovn.godwit", clientNow: start.Add(-50 * time.Minute)},
		{name: "no certificate on the disk", client: disk{"/tls/ca.crt": node["/tls/ca.crt"]}, server: server, host: "ovn.godwit", clientSays: "certificate /tls/tls.crt: open /tls/tls.crt"},
		{name: "key of another certificate", client: twins, server: server, host: "ovn.godwit", clientSays: "they must be made together"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.clientNow.IsZero() {
				c.clientNow = start
			}
			if c.serverNow.IsZero() {
				c.serverNow = start
			}
			client := c.client.files().ClientTLS([]string{c.host}, at(c.clientNow))
			client.ServerName = c.host // as tls.Dialer does
			clientErr, serverErr := shake(t, client, c.server.files().ServerTLS(at(c.serverNow)))
			if c.clientSays == "" && c.serverSays == "" && (clientErr != nil || serverErr != nil) {
				t.Fatalf("refused: client: %v, server: %v", clientErr, serverErr)
			}
			for says, err := range map[string]error{c.clientSays: clientErr, c.serverSays: serverErr} {
				if says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
					t.Errorf("error %v\nwant it to say %s", err, says)
				}
			}
		})
	}
}

func TestExpiredClientIsRefused(t *testing.T) {
	ours := must[Authority](t)(NewAuthority(rand.Reader, "ours", start))
	trust, late := []*x509.Certificate{ours.Certificate}, start.Add(LeafLife+time.Minute)
	node := newDisk(t, trust, ours, Leaf{Name: "n1", Usage: Client}, start)
	server := newDisk(t, trust, ours, Leaf{Name: "central", Hosts: []string{"ovn"}, Usage: ServerAndClient}, late)
	client := node.files().ClientTLS([]string{"ovn"}, at(start.Add(2*time.Hour)))
	client.ServerName = "ovn"
	client.VerifyConnection = nil // a client whose clock, or whose mind, is another
	if _, err := shake(t, client, server.files().ServerTLS(at(late))); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `"n1" expired at 2026-04-01T00:00:00Z`) {
		t.Errorf("the server says %v", err)
	}
}

func TestFilesAreReadForEveryConnection(t *testing.T) {
	old, next := must[Authority](t)(NewAuthority(rand.Reader, "old", start)), must[Authority](t)(NewAuthority(rand.Reader, "next", start))
	node := newDisk(t, []*x509.Certificate{old.Certificate}, old, Leaf{Name: "n1", Usage: Client}, start)
	server := newDisk(t, []*x509.Certificate{old.Certificate}, old, Leaf{Name: "central", Hosts: []string{"ovn"}, Usage: ServerAndClient}, start)
	client, listener := node.files().ClientTLS([]string{"ovn"}, at(start)), server.files().ServerTLS(at(start))
	client.ServerName = "ovn"
	try := func() bool { c, s := shake(t, client, listener); return c == nil && s == nil }
	if !try() {
		t.Fatal("refused before anything was rotated")
	}
	for name, b := range newDisk(t, []*x509.Certificate{next.Certificate}, next, Leaf{Name: "central", Hosts: []string{"ovn"}, Usage: ServerAndClient}, start) {
		server[name] = b
	}
	if try() {
		t.Error("the old files still count")
	}
	for name, b := range newDisk(t, []*x509.Certificate{next.Certificate}, next, Leaf{Name: "n1", Usage: Client}, start) {
		node[name] = b
	}
	if !try() {
		t.Error("the new files do not count")
	}
}

// Whoever looks once a day at what to trust is never refused, over the lives of several authorities.
func TestRotationLeavesNobodyOut(t *testing.T) {
	s := must[Authorities](t)(NewAuthorities(rand.Reader, "ca", start))
	trusted, signers := s.Bundle(), map[string]bool{}
	for now := start; now.Before(start.Add(3 * AuthorityLife)); now = now.Add(24 * time.Hour) {
		next, _, err := s.Rotate(rand.Reader, "ca", now)
		if err != nil {
			t.Fatal(err)
		}
		s = next
		signers[s.Signing.Certificate.Subject.CommonName] = true
		if left := s.Signing.Certificate.NotAfter.Sub(now); left < LeafLife {
			t.Fatalf("on %s the authority that signs has %s left", now, left)
		}
		// With yesterday's bundle, what is signed today is trusted; with today's, what was signed a leaf's life ago.
		if !holds(trusted, s.Signing.Certificate) {
			t.Fatalf("on %s a new authority signs that nobody could trust before", now)
		}
		trusted = s.Bundle()
		if len(trusted) > 3 {
			t.Fatalf("on %s there are %d authorities to trust", now, len(trusted))
		}
		if again, changed, err := s.Rotate(rand.Reader, "ca", now); err != nil || changed || again.Signing.Certificate != s.Signing.Certificate {
			t.Fatalf("on %s a second look changes something (%v)", now, err)
		}
	}
	if len(signers) < 4 {
		t.Errorf("%d authorities have signed in %s", len(signers), 3*AuthorityLife)
	}
}

func holds(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, x := range list {
		if x.Equal(c) {
			return true
		}
	}
	return false
}

func TestAuthorityReadBack(t *testing.T) {
	a, b := must[Authority](t)(NewAuthority(rand.Reader, "a", start)), must[Authority](t)(NewAuthority(rand.Reader, "b", start))
	key := must[[]byte](t)(EncodeKey(a.Key))
	if got, err := ParseAuthority(EncodeCertificates(a.Certificate), key); err != nil || !got.Certificate.Equal(a.Certificate) {
		t.Errorf("read back: %v", err)
	}
	if _, err := ParseAuthority(EncodeCertificates(b.Certificate), key); err == nil {
		t.Error("another authority's key was taken")
	}
}

func TestParseRequest(t *testing.T) {
	key := must[*ecdsaKey](t)(NewKey(rand.Reader))
	good := must[[]byte](t)(NewRequest(rand.Reader, key, "n1"))
	if name, public, err := ParseRequest(good); err != nil || name != "n1" || !key.PublicKey.Equal(public) {
		t.Errorf("ParseRequest = %q, %v", name, err)
	}
	for name, text := range refused(t, key) {
		if _, _, err := ParseRequest(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPeers(t *testing.T) {
	ours, theirs := must[Authority](t)(NewAuthority(rand.Reader, "ours", start)), must[Authority](t)(NewAuthority(rand.Reader, "theirs", start))
	trust := []*x509.Certificate{ours.Certificate}
	n1, n2 := newDisk(t, trust, ours, Leaf{Name: "n1", Usage: Client}, start), newDisk(t, trust, ours, Leaf{Name: "n2", Usage: Client}, start)
	for _, c := range []struct {
		name           string
		client, server disk
		to, says       string
	}{
		{"node to node", n1, n2, "n2", ""},
		{"another node answers", n1, n2, "n3", `"n2" is not node "n3"'s`},
		{"a server of another authority", n1, newDisk(t, trust, theirs, Leaf{Name: "n2", Usage: Client}, start), "n2", `signed by "theirs `},
	} {
		t.Run(c.name, func(t *testing.T) {
			clientErr, serverErr := shake(t, c.client.files().PeerTLS(c.to, at(start)), c.server.files().PeerServerTLS(at(start.Add(-30*time.Minute))))
			if c.says == "" && (clientErr != nil || serverErr != nil) {
				t.Fatalf("refused: %v, %v", clientErr, serverErr)
			}
			if c.says != "" && (clientErr == nil || !strings.Contains(clientErr.Error(), c.says)) {
				t.Errorf("error %v\nwant it to say %s", clientErr, c.says)
			}
		})
	}
}
