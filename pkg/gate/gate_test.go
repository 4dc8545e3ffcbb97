package gate

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// world is a gate before a server that answers every connection with what it was sent, in capitals, once the client has said all.
type world struct {
	address string
	reached atomic.Int64
	log     *lines
	admin   pki.Authority
	dir     string
}

// lines is a log that can be looked at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func authority(t *testing.T, name string) pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority(rand.Reader, name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// store writes a directory with a certificate by one authority that trusts another.
func store(t *testing.T, by, trusts pki.Authority, name string) string {
	t.Helper()
	dir := t.TempDir()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := by.Sign(rand.Reader, pki.Leaf{Name: name, Hosts: []string{"127.0.0.1"}, Usage: pki.ServerAndClient, Key: key.Public()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string][]byte{pki.CAFile: pki.EncodeCertificates(trusts.Certificate), pki.CertFile: cert, pki.KeyFile: secret} {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func newWorld(t *testing.T, most int) *world {
	t.Helper()
	short, err := os.MkdirTemp("", "gate") // a unix socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	w := &world{log: &lines{}, admin: authority(t, "admin"), dir: short}
	socket := filepath.Join(short, "db.sock")
	db, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	go func() {
		for conn, err := db.Accept(); err == nil; conn, err = db.Accept() {
			w.reached.Add(1)
			go func() {
				defer func() { _ = conn.Close() }()
				said, _ := io.ReadAll(conn)
				_, _ = conn.Write(bytes.ToUpper(said))
			}()
		}
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = free.Addr().String()
	_ = free.Close()
	dir := store(t, w.admin, w.admin, "gate")
	background(t, func(ctx context.Context) error {
		return Run(ctx, Config{
			Listen: w.address, Unix: socket, MaxConnections: most, Logger: w.log.logger(),
			CA: filepath.Join(dir, pki.CAFile), Cert: filepath.Join(dir, pki.CertFile), Key: filepath.Join(dir, pki.KeyFile),
		})
	})
	eventually(t, func() error { return w.says("gate is open") })
	return w
}

func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *world) says(text string) error {
	if !strings.Contains(w.log.String(), text) {
		return fmt.Errorf("the log does not say %q: %s", text, w.log)
	}
	return nil
}

// dial connects with the certificates of a directory.
func (w *world) dial(t *testing.T, dir string) (*tls.Conn, error) {
	t.Helper()
	d := tls.Dialer{Config: pki.Dir(os.ReadFile, dir).ClientTLS([]string{"127.0.0.1"}, time.Now)}
	conn, err := d.DialContext(t.Context(), "tcp", w.address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*tls.Conn), conn.SetDeadline(time.Now().Add(20 * time.Second))
}

// ask says something and returns the answer.
func ask(conn half, what string) (string, error) {
	if _, err := io.WriteString(conn, what); err != nil {
		return "", err
	}
	if err := conn.CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

func TestGateCarriesBothWays(t *testing.T) {
	w := newWorld(t, 0)
	conn, err := w.dial(t, store(t, w.admin, w.admin, "controller"))
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("transact", 100_000)
	if got, err := ask(conn, long); err != nil || got != strings.ToUpper(long) {
		t.Errorf("the answer has %d bytes (%v), want %d", len(got), err, len(long))
	}
}

func TestGateRefusesOtherAuthorities(t *testing.T) {
	w := newWorld(t, 0)
	nodes := authority(t, "nodes")
	for name, dir := range map[string]string{"n1": store(t, nodes, w.admin, "n1"), "godwit-ovn-admin": store(t, nodes, w.admin, "godwit-ovn-admin")} {
		conn, err := w.dial(t, dir)
		if err == nil { // TLS 1.3 says it at the first read
			_, err = conn.Read(make([]byte, 1))
		}
		var alert tls.AlertError
		if err == nil || !errors.As(err, &alert) && !strings.Contains(err.Error(), "tls: bad certificate") {
			t.Errorf("%s: %v, want the gate's refusal", name, err)
		}
		eventually(t, func() error { return w.says(fmt.Sprintf(`that of \"%s\" is signed by \"nodes`, name)) })
	}
	plain, err := net.Dial("tcp", w.address)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := ask(plain.(*net.TCPConn), `{"method":"list_dbs"}`); strings.Contains(got, "LIST_DBS") {
		t.Error("a client without TLS has reached the database")
	}
	if n := w.reached.Load(); n != 0 {
		t.Errorf("%d connections have reached the database", n)
	}
}

// Whoever opens connections and says nothing keeps nobody out, however many they are.
func TestGateIsOpenBesideStrangers(t *testing.T) {
	w := newWorld(t, 2)
	for range maxStrangers + 10 {
		silent, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close() //nolint:errcheck // nothing is lost with it
	}
	conn, err := w.dial(t, store(t, w.admin, w.admin, "controller"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ask(conn, "let in"); err != nil || got != "LET IN" {
		t.Errorf("it says %q, %v", got, err)
	}
}

func TestGateHasRoomForSoMany(t *testing.T) {
	w := newWorld(t, 2)
	dir := store(t, w.admin, w.admin, "controller")
	var held []*tls.Conn
	for range 2 {
		conn, err := w.dial(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	eventually(t, func() error {
		if n := w.reached.Load(); n != 2 {
			return fmt.Errorf("%d connections have reached the database, want 2", n)
		}
		return nil
	})
	said := ""
	if third, err := w.dial(t, dir); err == nil { // its own half of the handshake is over before it is known that there is no room
		said, _ = ask(third, "third")
	}
	if n := w.reached.Load(); said != "" || n != 2 {
		t.Errorf("there was room for a third: it was told %q, and %d connections have reached the database", said, n)
	}
	if got, err := ask(held[0], "still here"); err != nil || got != "STILL HERE" {
		t.Errorf("a connection that had its place says %q, %v", got, err)
	}
	eventually(t, func() error { // its place is free again
		conn, err := w.dial(t, dir)
		if err != nil {
			return err
		}
		_, err = ask(conn, "third")
		return err
	})
}

func TestForwardReachesAGate(t *testing.T) {
	w := newWorld(t, 0)
	dir, log := store(t, w.admin, w.admin, "member"), &lines{}
	c := ForwardConfig{
		Unix: filepath.Join(w.dir, "raft.sock"), Remote: w.address, Logger: log.logger(),
		CA: filepath.Join(dir, pki.CAFile), Cert: filepath.Join(dir, pki.CertFile), Key: filepath.Join(dir, pki.KeyFile),
	}
	if err := os.WriteFile(c.Unix, nil, 0o600); err != nil { // what an earlier process has left
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error { return Forward(ctx, c) })
	eventually(t, func() error {
		conn, err := net.Dial("unix", c.Unix)
		if err != nil {
			return err
		}
		got, err := ask(conn.(*net.UnixConn), "append entries")
		if err == nil && got != "APPEND ENTRIES" {
			err = fmt.Errorf("the other member says %q: %s", got, log)
		}
		return err
	})
}

func TestConfigIsChecked(t *testing.T) {
	err := Config{Listen: "6643", Unix: "db.sock", CA: "/ca.crt", Cert: "/tls.crt", MaxConnections: -1}.Validate()
	for _, want := range []string{`"6643": want HOST:PORT`, `socket "db.sock"`, `key ""`, "-1 connections"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %s", err, want)
		}
	}
	dir := t.TempDir()
	c := Config{Listen: "127.0.0.1:0", Unix: "/nowhere", CA: dir + "/ca.crt", Cert: dir + "/tls.crt", Key: dir + "/tls.key", Logger: slog.New(slog.DiscardHandler)}
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), dir+"/ca.crt") {
		t.Errorf("a gate without certificates: %v", err)
	}
}
