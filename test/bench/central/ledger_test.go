package central

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T, path string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
}

// dial waits for the ledger to listen.
func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	var d net.Dialer
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := d.DialContext(t.Context(), "unix", path)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// Everything gets through, in both directions, and what changes something is counted once.
func TestLedgerCounts(t *testing.T) {
	dir := t.TempDir()
	target, counted := filepath.Join(dir, "t"), filepath.Join(dir, "c")
	echo(t, target)
	l := &Ledger{About: func(table string) bool { return table != "Logical_Switch_Port" }}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Serve(ctx, counted, target) }()
	conn := dial(t, counted)
	const said = `{"id":1,"method":"monitor_cond_since","params":["OVN_Northbound",null,{}]}` +
		`{"id":2,"method":"transact","params":["OVN_Northbound",{"op":"select","table":"ACL","where":[]}]}` +
		`{"id":3,"method":"transact","params":["OVN_Northbound",{"op":"wait","table":"Port_Group"},{"op":"insert","table":"Logical_Switch_Port"},` +
		`{"op":"mutate","table":"Port_Group"},{"op":"mutate","table":"Address_Set"},{"op":"delete","table":"ACL"}]}` +
		`{"id":4,"method":"echo","params":[]}{"id":5,"result":[],"error":null}`
	if _, err := io.WriteString(conn, said); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(said))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != said {
		t.Fatalf("the database answered %q (%v), want what was sent", got, err)
	}
	// The last message is passed on before it is read: what was sent is counted when the ledger has ended.
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for _, op := range []string{`{"op":"wait","table":"Port_Group"}`, `{"op":"insert","table":"Logical_Switch_Port"}`, `{"op":"mutate","table":"Port_Group"}`,
		`{"op":"mutate","table":"Address_Set"}`, `{"op":"delete","table":"ACL"}`} {
		bytes += len(op)
	}
	want := Totals{Transactions: 1, Reads: 1, Operations: 4, About: 3, Bytes: bytes}
	if diff := cmp.Diff(want, l.Read()); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// What is no JSON is an error, and not a count that is too low.
func TestLedgerRefusesNoise(t *testing.T) {
	for i, text := range []string{`{"method":"transact","params":["x",{"op":1}]}`, `{]`} {
		dir := t.TempDir()
		target, counted := filepath.Join(dir, fmt.Sprint("t", i)), filepath.Join(dir, fmt.Sprint("c", i))
		echo(t, target)
		l := &Ledger{About: func(table string) bool { return table != "Logical_Switch_Port" }}
		ended := make(chan error, 1)
		go func() { ended <- l.Serve(t.Context(), counted, target) }()
		conn := dial(t, counted)
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}
