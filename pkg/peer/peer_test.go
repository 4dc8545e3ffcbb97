package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// service lets node n1 speak of migration m, and notes what it says.
type service struct {
	mu   sync.Mutex
	said []Message
	fail error
}

func (s *service) Admit(node string, m Migration) error {
	if node != "n1" || m != (Migration{"ns", "m"}) {
		return fmt.Errorf("node %s has no say in migration %s/%s", node, m.Namespace, m.UID)
	}
	return nil
}

func (s *service) Handle(_ context.Context, _ Migration, msg Message) (Reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, msg)
	return Reply{Again: msg.Kind == Connections}, s.fail
}

// world is an authority and a server of node n2.
type world struct {
	ca      pki.Authority
	service *service
	address string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, err := pki.NewAuthority(rand.Reader, "nodes", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{ca: ca, service: &service{}}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = l.Addr().String()
	s := &Server{Files: w.files(t, "n2", pki.Client), Service: w.service, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return w
}

// files are a certificate of that name and the authority.
func (w *world) files(t *testing.T, name string, usage pki.Usage) *pki.Files {
	t.Helper()
	return filesOf(t, w.ca, name, usage)
}

func filesOf(t *testing.T, ca pki.Authority, name string, usage pki.Usage) *pki.Files {
	t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(rand.Reader, pki.Leaf{Name: name, Usage: usage, Key: key.Public()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	disk := map[string][]byte{"/ca.crt": pki.EncodeCertificates(ca.Certificate), "/tls.crt": cert, "/tls.key": secret}
	return pki.Dir(func(name string) ([]byte, error) {
		if b, ok := disk[name]; ok {
			return b, nil
		}
		return nil, fs.ErrNotExist
	}, "/")
}

func TestMessagesArrive(t *testing.T) {
	w := newWorld(t)
	c, err := Dial(t.Context(), Target{w.address, "n2"}, w.files(t, "n1", pki.Client), Migration{"ns", "m"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	want := []Message{{Kind: Stopped, Ports: []string{"a", "b"}}, {Kind: Connections, Zone: "a", Entries: []byte{0, 255}}, {Kind: Resumed}}
	for _, m := range []Message{want[0], {Kind: Alive}, want[1], want[2]} {
		if r, err := c.Send(t.Context(), m); err != nil || r.Again != (m.Kind == Connections) {
			t.Fatalf("%+v is answered by %+v (%v)", m, r, err)
		}
	}
	w.service.mu.Lock()
	if diff := cmp.Diff(want, w.service.said); diff != "" {
		t.Errorf("what arrived (-want +got):\n%s", diff)
	}
	w.service.fail = errors.New("it is over")
	w.service.mu.Unlock()
	if _, err := c.Send(t.Context(), Message{Kind: Stopped}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "it is over") {
		t.Errorf("a message that is not taken: %v, want ErrRefused with the reason", err)
	}
}

func TestWhoIsRefused(t *testing.T) {
	w := newWorld(t)
	other, err := pki.NewAuthority(rand.Reader, "others", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		files *pki.Files
		to    string
		m     Migration
		says  string
	}{
		{"another node", w.files(t, "n3", pki.Client), "n2", Migration{"ns", "m"}, "node n3 has no say"},
		{"another migration", w.files(t, "n1", pki.Client), "n2", Migration{"ns", "x"}, "no say in migration ns/x"},
		{"another namespace", w.files(t, "n1", pki.Client), "n2", Migration{"other", "m"}, "no say in migration other/m"},
		{"another authority", filesOf(t, other, "n1", pki.Client), "n2", Migration{"ns", "m"}, "signed by"},
		{"a target that is another node", w.files(t, "n1", pki.Client), "n4", Migration{"ns", "m"}, `"n2" is not node "n4"'s`},
		{"central in a node's place", w.files(t, "central", pki.ServerAndClient), "n2", Migration{"ns", "m"}, "node central has no say"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if conn, err := Dial(t.Context(), Target{w.address, c.to}, c.files, c.m); err == nil || !strings.Contains(err.Error(), c.says) {
				if conn != nil {
					_ = conn.Close()
				}
				t.Errorf("error %v\nwant it to say %s", err, c.says)
			}
		})
	}
	if len(w.service.said) != 0 {
		t.Errorf("%v was heard", w.service.said)
	}
}

// A server of the databases has a certificate for servers, of the same authority: it must not pass for a node either.
func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t)
	cfg := w.files(t, "n1", pki.Client).PeerTLS("n2", time.Now)
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", w.address); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.2 was taken")
	}
}

// raw is a connection of node n1 on which anything can be said.
func (w *world) raw(t *testing.T) net.Conn {
	t.Helper()
	conn, err := (&tls.Dialer{Config: w.files(t, "n1", pki.Client).PeerTLS("n2", time.Now)}).DialContext(t.Context(), "tcp", w.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// What makes no sense ends the connection; it is not answered, and nobody acts on it.
func TestMalformedMessages(t *testing.T) {
	w := newWorld(t)
	framed := func(text string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
	}
	for name, said := range map[string][]byte{
		"too long":     binary.BigEndian.AppendUint32(nil, MaxMessage+1),
		"four GiB":     {0xff, 0xff, 0xff, 0xff},
		"not JSON":     framed("stopped"),
		"another type": framed(`{"version":"1"}`),
		"empty":        framed(""),
	} {
		t.Run(name, func(t *testing.T) {
			conn := w.raw(t)
			if _, err := conn.Write(said); err != nil {
				t.Fatal(err)
			}
			var a answer
			if err := read(conn, &a); err == nil {
				t.Errorf("answered %+v", a)
			}
		})
	}
	t.Run("another version", func(t *testing.T) {
		conn := w.raw(t)
		var a answer
		if err := errors.Join(write(conn, hello{Version: Version + 1, Migration: Migration{"ns", "m"}}), read(conn, &a)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(a.Error, "version 2: want 1") {
			t.Errorf("answered %q", a.Error)
		}
	})
	if len(w.service.said) != 0 {
		t.Errorf("%v was heard", w.service.said)
	}
}

func TestOneNodeCannotTakeAllPlaces(t *testing.T) {
	w := newWorld(t)
	files := w.files(t, "n1", pki.Client)
	dial := func() error {
		c, err := Dial(t.Context(), Target{w.address, "n2"}, files, Migration{"ns", "m"})
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	}
	for i := range maxOfNode {
		if err := dial(); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if err := dial(); err == nil {
		t.Error("there is no bound")
	}
}

// Whoever opens connections and says nothing keeps no agent out, however many they are.
func TestStrangersTakeNoPlaces(t *testing.T) {
	w := newWorld(t)
	for range maxStrangers + 10 {
		silent, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close() //nolint:errcheck // nothing is lost with it
	}
	c, err := Dial(t.Context(), Target{w.address, "n2"}, w.files(t, "n1", pki.Client), Migration{"ns", "m"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send(t.Context(), Message{Kind: Stopped}); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestALateAnswerEndsTheWait(t *testing.T) {
	w := newWorld(t)
	c, err := Dial(t.Context(), Target{w.address, "n2"}, w.files(t, "n1", pki.Client), Migration{"ns", "m"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	w.service.mu.Lock() // so that it does not answer
	defer w.service.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Send(ctx, Message{Kind: Stopped}); err == nil {
		t.Error("there was an answer")
	}
}

// What could not be sent to its end is the last that is sent: the other side would take the rest, TLS's farewell too, for what was missing.
func TestNothingFollowsHalfAMessage(t *testing.T) {
	w := newWorld(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing is lost with it
	server, accepted := w.files(t, "n2", pki.Client).PeerServerTLS(time.Now), make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if conn, err := l.Accept(); err == nil {
			accepted <- conn
			_ = tls.Server(conn, server).HandshakeContext(t.Context())
		}
	}()
	near, err := (&tls.Dialer{Config: w.files(t, "n1", pki.Client).PeerTLS("n2", time.Now)}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far := <-accepted
	for range accepted { // until the handshake is over
		t.Error("another connection")
	}
	defer far.Close() //nolint:errcheck // nothing is lost with it
	c := &Conn{conn: near.(*tls.Conn)}
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if _, err := c.Send(late, Message{Kind: Stopped}); err == nil {
		t.Error("there was time to send it")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(far); err != nil || len(b) > 0 {
		t.Errorf("%d octets follow, %v, want none", len(b), err)
	}
}

func TestRefusalIsShort(t *testing.T) {
	if n := len(answerOf(Reply{}, errors.New(strings.Repeat("x", MaxMessage))).Error); n != maxText {
		t.Errorf("%d octets, want %d", n, maxText)
	}
}

// Whatever is sent, reading it ends, and what is read can be written.
func FuzzRead(f *testing.F) {
	for _, m := range []any{Message{Kind: Stopped, Ports: []string{"a"}}, hello{Version: 1}, answer{Error: "no"}} {
		var b bytes.Buffer
		if err := write(&b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Message
		if read(bytes.NewReader(b), &m) != nil {
			return
		}
		var out bytes.Buffer
		if err := write(&out, m); err != nil && out.Len() != 0 {
			t.Errorf("%+v was read, and half of it written: %v", m, err)
		}
	})
}
