package ovnpod

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// patience bounds each wait on a slow machine; elections take seconds.
const patience = 2 * time.Minute

// world is a cluster of real database servers on addresses of the loopback link, with the API in memory.
type world struct {
	t      *testing.T
	api    API
	schema string
	ports  int
	// protocol is tcp, or ssl with certificates in tls.
	protocol, tls string
	// unwatched: nobody looks after the cluster of a member that starts.
	unwatched bool
}

func newWorld(t *testing.T, replicas int32) *world {
	t.Helper()
	root, err := packages.Ensure(t.Context(), slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range root.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	schema, err := root.Path("usr/share/ovn")
	if err != nil {
		t.Fatal(err)
	}
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: CentralName, Namespace: "godwit-system"}, Spec: appsv1.StatefulSetSpec{Replicas: &replicas}}
	return &world{t: t, api: API{Client: fake.NewClientset(set), Namespace: "godwit-system"}, schema: schema, ports: 20000 + os.Getpid()%20000, protocol: "tcp"}
}

// run is a member's container: the database server, and what looks after its cluster.
type run struct {
	database Database
	// said is what was logged of it.
	said *spoken
	// end kills the server, and what looks after its cluster; a second time it does nothing.
	end func()
}

// spoken is a log that is read while it is written.
type spoken struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (s *spoken) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *spoken) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// start starts the member of a pod on a node, whose disk is dir.
func (w *world) start(ordinal, node int, dir string) *run {
	w.t.Helper()
	c := Defaults()
	c.PodName, c.StateDir, c.RunDir, c.SchemaDir, c.ElectionTimer = fmt.Sprintf("ovn-central-%d", ordinal), dir, dir, w.schema, time.Second
	var remotes []string
	for n := 1; n <= 4; n++ {
		remotes = append(remotes, fmt.Sprintf("%s:127.0.7.%d:%d", w.protocol, n, w.ports))
	}
	c.NBRemote = strings.Join(remotes, ",")
	if w.tls != "" {
		c.AdminTLS = w.tls
	}
	d, err := c.Database(ProbeNB)
	if err != nil {
		w.t.Fatal(err)
	}
	said := &spoken{}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(w.t.Output(), said), nil))
	address := netip.MustParseAddr(fmt.Sprintf("127.0.7.%d", node))
	argv, err := Member{Config: c, Database: d, API: w.api, Log: log, Addresses: []netip.Addr{address}}.Prepare(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	watcher := &Watcher{Database: d, API: w.api, Log: log, Now: time.Now}
	done := make(chan error, 1)
	if w.unwatched {
		done <- nil
	} else {
		go func() { done <- Watch(ctx, watcher) }()
	}
	r := &run{database: d, said: said, end: sync.OnceFunc(func() {
		cancel()
		_ = cmd.Wait() // killed
		<-done
	})}
	w.t.Cleanup(r.end)
	return r
}

// settled returns when a member takes writes and its cluster has so many members.
func (w *world) settled(r *run, members int) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := w.look(r, members)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("after %s: %v", patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (w *world) look(r *run, members int) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), askTimeout)
	defer cancel()
	s, err := r.database.status(ctx)
	if err != nil {
		return err
	}
	if !s.Member || !s.Led || len(s.servers) != members {
		return fmt.Errorf("member %t, led %t, %d servers, want %d", s.Member, s.Led, len(s.servers), members)
	}
	var results []struct{ Error, Details string }
	insert := map[string]any{"op": "insert", "table": "Address_Set", "row": map[string]any{"name": fmt.Sprintf("s%d", time.Now().UnixNano())}}
	if err := ovs.Call(ctx, r.database.Socket, "transact", []any{r.database.Name, insert}, &results); err != nil {
		return err
	}
	for _, res := range results {
		if res.Error != "" {
			return fmt.Errorf("%s: %s", res.Error, res.Details)
		}
	}
	return nil
}

// TestMemberIsReplaced: three members; one loses its disk and joins anew under its old address, another comes up on another node with an empty disk. Each time the member in
// whose place it came is removed, and when its disk turns up again it joins as somebody new.
func TestMemberIsReplaced(t *testing.T) {
	w := newWorld(t, 3)
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	first := w.start(0, 1, dirs[0])
	w.settled(first, 1)
	second, third := w.start(1, 2, dirs[1]), w.start(2, 3, dirs[2])
	w.settled(second, 3)
	w.settled(third, 3)

	third.end()
	anew := w.start(2, 3, t.TempDir())
	w.settled(anew, 3)

	first.end()
	elsewhere := w.start(0, 4, t.TempDir())
	w.settled(elsewhere, 3)
	w.settled(second, 3)

	second.end()
	back := w.start(1, 1, dirs[0]) // the first pod's former disk: its member was removed
	w.settled(back, 3)
	if _, err := os.Stat(filepath.Join(dirs[0], "nb.db.former")); err != nil {
		t.Errorf("the file of a member that was removed is not put aside: %v", err)
	}
	r, err := w.api.Record(t.Context(), ProbeNB)
	if err != nil {
		t.Fatal(err)
	}
	if r.Cluster == "" || len(r.Removed) < 3 {
		t.Errorf("the API remembers %+v, want the cluster and three members that were removed", r)
	}
}

// TestMemberThatLeftComesBack: a member was told to leave its cluster, for good. Its file is no member's any more, and its pod joins anew.
func TestMemberThatLeftComesBack(t *testing.T) {
	w := newWorld(t, 3)
	dir := t.TempDir()
	first := w.start(0, 1, t.TempDir())
	w.settled(first, 1)
	second, third := w.start(1, 2, t.TempDir()), w.start(2, 3, dir)
	w.settled(second, 3)
	w.settled(third, 3)
	var said string
	if err := ovs.Call(t.Context(), third.database.Control, "cluster/leave", []string{third.database.Name}, &said); err != nil {
		t.Fatal(err)
	}
	w.settled(first, 2)
	w.until(func() error { return third.mentions("it has given its database up") }) // its server serves it no more, and is ended
	third.end()
	w.settled(w.start(2, 3, dir), 3)
}

// TestClusterGoesToTLS: all members end, and start again with remotes by TLS. The first makes a cluster of what it has, even if it dies in between, and the others join that; no row is lost.
func TestClusterGoesToTLS(t *testing.T) {
	w := newWorld(t, 3)
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	var runs []*run
	for i, dir := range dirs {
		runs = append(runs, w.start(i, i+1, dir))
		w.settled(runs[i], i+1)
	}
	before := w.rows(runs[0])
	for _, r := range runs {
		r.end()
	}
	w.protocol, w.tls = "ssl", certificates(t)
	w.dieMoving(dirs[0])
	for i, dir := range dirs {
		runs[i] = w.start(i, i+1, dir)
		w.settled(runs[i], i+1)
	}
	if after := w.rows(runs[2]); len(before) == 0 || !before.subsetOf(after) {
		t.Errorf("of the rows %v the last member has %v", before, after)
	}
	r, err := w.api.Record(t.Context(), ProbeNB)
	s, statusErr := runs[1].database.status(t.Context())
	if err := errors.Join(err, statusErr); err != nil || r.Cluster != s.Cluster {
		t.Errorf("the API remembers cluster %s, and it is %s: %v", r.Cluster, s.Cluster, err)
	}
}

// dieMoving leaves what the first member leaves when it dies after the record, before the file is in its place.
func (w *world) dieMoving(dir string) {
	c := Defaults()
	c.StateDir, c.SchemaDir, c.NBRemote = dir, w.schema, fmt.Sprintf("ssl:127.0.7.1:%d", w.ports)
	d, err := c.Database(ProbeNB)
	if err != nil {
		w.t.Fatal(err)
	}
	m := Member{Config: c, Database: d, API: w.api, Log: slog.Default()}
	r, err := w.api.Record(w.t.Context(), ProbeNB)
	if err := errors.Join(err, m.move(w.t.Context(), found{want: d.raftAddress(d.Hosts[0]), record: r})); err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(os.Rename(d.File, m.newFile()), os.Rename(d.File+".former", d.File)); err != nil {
		w.t.Fatal(err)
	}
}

type names map[string]bool

func (n names) subsetOf(other names) bool {
	for name := range n {
		if !other[name] {
			return false
		}
	}
	return true
}

// rows are the names of the rows that look has made.
func (w *world) rows(r *run) names {
	results, err := r.database.transact(w.t.Context(), map[string]any{"op": "select", "table": "Address_Set", "where": []any{}, "columns": []string{"name"}})
	if err != nil {
		w.t.Fatal(err)
	}
	n := names{}
	for _, row := range results[0].Rows {
		n[string(row["name"])] = true
	}
	return n
}

// certificates makes an authority, and a certificate for members of the database.
func certificates(t *testing.T) (dir string) {
	dir = t.TempDir()
	by, err := pki.NewAuthority(rand.Reader, "administrators", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := by.Sign(rand.Reader, pki.Leaf{Name: "admin", Usage: pki.ServerAndClient, Hosts: []string{"127.0.7.1"}, Key: key.Public()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{pki.CAFile: pki.EncodeCertificates(by.Certificate), pki.CertFile: cert, pki.KeyFile: secret} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestLostDatabaseIsNotMadeAnew: a single member whose disk is empty, while the API knows of a cluster, makes no other; it says what to do.
func TestLostDatabaseIsNotMadeAnew(t *testing.T) {
	w := newWorld(t, 1)
	if err := w.api.Remember(t.Context(), ProbeNB, func(r *Record) { r.Cluster = "cd66955e-3753-4b01-8c70-ec84edfe55c8" }); err != nil {
		t.Fatal(err)
	}
	c := Defaults()
	c.PodName, c.StateDir, c.RunDir, c.SchemaDir, c.NBRemote = "ovn-central-0", t.TempDir(), t.TempDir(), w.schema, "tcp:127.0.7.1:6641"
	d, err := c.Database(ProbeNB)
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string][]byte{"none": nil, "one that cannot be read": []byte("OVSDB CLU")} {
		if file != nil {
			if err := os.WriteFile(d.File, file, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err = Member{Config: c, Database: d, API: w.api, Log: slog.Default(), Addresses: d.Hosts}.Prepare(t.Context())
		if err == nil || !strings.Contains(err.Error(), "delete configmap godwit-ovn") {
			t.Errorf("file: %s: error %v, want one that says how to begin anew", name, err)
		}
		if err := remove(d.File); err != nil {
			t.Fatal(err)
		}
	}
}
