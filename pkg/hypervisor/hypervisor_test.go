package hypervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// patience is how long a test waits for what is about to come.
const patience = 30 * time.Second

// launcherDir makes the volume of a launcher, and says where the socket is. The path of a socket has its bound, which real pods' are over: it is listened on from within.
func launcherDir(t *testing.T) (l Launcher, dir string) {
	t.Helper()
	l = Launcher{Pods: t.TempDir(), UID: "5e3b8a70-0f4e-4b6c-9f8e-2f6f2f1d9a11"}
	dir = filepath.Join(l.Pods, l.UID, "volumes/kubernetes.io~empty-dir", volume)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return l, dir
}

// serve plays the other side of one connection.
func serve(t *testing.T, dir, socket string, play func(net.Conn) error) {
	t.Helper()
	short, err := os.MkdirTemp("", "hv") //nolint:usetesting // its path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	lis, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(short, "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(short, "s"), filepath.Join(dir, socket)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		conn, err := lis.Accept()
		if err == nil {
			err = play(conn)
			_ = conn.Close()
		}
		done <- err
	}()
	t.Cleanup(func() {
		_ = lis.Close()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
			t.Errorf("the launcher: %v", err)
		}
	})
}

// all are the events until the channel is closed.
func all(t *testing.T, events <-chan Event) (got []Event) {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return got
			}
			got = append(got, e)
		case <-late:
			t.Fatalf("after %v no end", got)
		}
	}
}

// virtqemud answers as libvirt 9.0 does: root's when it does not know sessions.
type virtqemud struct {
	conn net.Conn
	// refuse are URIs that it does not open.
	refuse string
}

func (v virtqemud) answer() error {
	p, err := readPacket(v.conn)
	if err != nil {
		return err
	}
	reply := packet{program: p.program, procedure: p.procedure, kind: kindReply, serial: p.serial}
	switch p.procedure {
	case procAuthList:
		reply.payload = []byte{0, 0, 0, 1, 0, 0, 0, 0} // one way: none
	case procConnectOpen:
		d := xdr{rest: p.payload}
		if present, uri := d.number(), string(d.opaque(d.number())); present != 1 || d.number() != 0 || d.failed || uri != uris[0] && uri != uris[1] {
			return fmt.Errorf("asked to open %q", p.payload)
		} else if uri == v.refuse {
			reply.status = 1
			reply.payload = xdrString([]byte{0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1}, "internal error: unexpected QEMU URI path")
		}
	case procRegisterAny:
		if !bytes.Equal(p.payload, make([]byte, 8)) {
			return fmt.Errorf("asked for events by %x", p.payload)
		}
		reply.payload = []byte{0, 0, 0, 7}
	default:
		return fmt.Errorf("asked for procedure %d", p.procedure)
	}
	_, err = v.conn.Write(reply.encode())
	return err
}

// tell sends a lifecycle event.
func (v virtqemud) tell(event, detail uint32) error {
	b := xdrString([]byte{0, 0, 0, 7}, "default_web1")
	b = append(b, make([]byte, 16)...)
	for _, n := range []uint32{1, event, detail} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	_, err := v.conn.Write(packet{program: remoteProgram, procedure: procLifecycle, kind: kindMessage, payload: b}.encode())
	return err
}

func TestLibvirtTellsWhatAMigrationDoes(t *testing.T) {
	for name, c := range map[string]struct {
		refuse string
		calls  int
	}{"session": {"", 3}, "root's": {uris[0], 4}} {
		t.Run(name, func(t *testing.T) {
			l, dir := launcherDir(t)
			serve(t, dir, libvirtSocket, func(conn net.Conn) error {
				v := virtqemud{conn, c.refuse}
				for range c.calls {
					if err := v.answer(); err != nil {
						return err
					}
				}
				for _, e := range [][2]uint32{
					{3, 0}, // suspended: paused by its user
					{4, 0}, // resumed
					{3, 1}, // suspended: migrated
					{4, 1}, // resumed: the migration has failed
					{3, 7}, // suspended: post-copy
					{5, 3}, // stopped: migrated
				} {
					if err := v.tell(e[0], e[1]); err != nil {
						return err
					}
				}
				return nil
			})
			events, err := Watch(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]Event{Resumed, Stopped, Resumed, Stopped}, all(t, events)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLibvirtThatRefusesIsQuoted(t *testing.T) {
	l, dir := launcherDir(t)
	serve(t, dir, libvirtSocket, func(conn net.Conn) error {
		v := virtqemud{conn, uris[1]}
		for range 3 {
			p, err := readPacket(v.conn)
			if err != nil {
				return err
			}
			reply := packet{program: p.program, procedure: p.procedure, kind: kindReply, serial: p.serial, status: 1}
			if p.procedure == procAuthList {
				reply.status, reply.payload = statusOK, make([]byte, 4)
			} else {
				reply.payload = xdrString([]byte{0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1}, "no such driver")
			}
			if _, err := conn.Write(reply.encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if _, err := Watch(t.Context(), l); err == nil || !strings.Contains(err.Error(), `"no such driver"`) {
		t.Errorf("error %v, want libvirt's reason", err)
	}
}

// monitor plays QEMU's: what it says after the negotiation, with the status of the last migration.
func monitor(status string, lines ...string) func(net.Conn) error {
	return func(conn net.Conn) error {
		said := bufio.NewScanner(conn)
		if _, err := io.WriteString(conn, `{"QMP":{"version":{"qemu":{"major":7}},"capabilities":["oob"]}}`+"\n"); err != nil {
			return err
		}
		for _, c := range []struct{ asks, gets string }{
			{`{"execute":"qmp_capabilities"}`, `{"return":{}}`}, {`{"execute":"query-migrate"}`, `{"return":{` + status + `}}`},
		} {
			if !said.Scan() || said.Text() != c.asks {
				return fmt.Errorf("asked %q, want %s", said.Text(), c.asks)
			}
			if _, err := io.WriteString(conn, c.gets+"\n"); err != nil {
				return err
			}
		}
		_, err := io.WriteString(conn, strings.Join(lines, "\n")+"\n")
		return err
	}
}

func TestQEMUTellsWhatAMigrationDoes(t *testing.T) {
	const at = `"timestamp":{"seconds":1,"microseconds":2}`
	status := func(s string) string { return `{"event":"MIGRATION",` + at + `,"data":{"status":"` + s + `"}}` }
	stop, resume := `{"event":"STOP",`+at+`}`, `{"event":"RESUME",`+at+`}`
	for name, c := range map[string]struct {
		before string
		lines  []string
		want   []Event
	}{
		"moved":                        {"", []string{status("setup"), status("active"), stop, status("device"), status("completed")}, []Event{Stopped}},
		"failed":                       {"", []string{status("active"), stop, status("failed"), resume}, []Event{Stopped, Resumed}},
		"paused by its user":           {"", []string{stop, resume}, []Event{Resumed}},
		"paused after a migration":     {`"status":"failed"`, []string{stop}, nil},
		"known in the middle":          {`"status":"active"`, []string{stop}, []Event{Stopped}},
		"known before it was switched": {`"status":"pre-switchover"`, []string{resume}, []Event{Resumed}},
	} {
		t.Run(name, func(t *testing.T) {
			l, dir := launcherDir(t)
			serve(t, dir, QMPSocket, monitor(c.before, c.lines...))
			events, err := Watch(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, all(t, events)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	l, dir := launcherDir(t)
	serve(t, dir, QMPSocket, func(conn net.Conn) error {
		err := monitor("")(conn)
		_, _ = conn.Read(make([]byte, 1)) // until the other side has gone
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	events, err := Watch(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := all(t, events); len(got) != 0 {
		t.Errorf("events %v", got)
	}
}

// A launcher that somebody has broken into may put anything where its socket was.
func TestALauncherCannotLeadElsewhere(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "s")
	lis, err := new(net.ListenConfig).Listen(t.Context(), "unix", elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	for name, put := range map[string]func(dir string) error{
		"a link to a socket": func(dir string) error { return os.Symlink(elsewhere, filepath.Join(dir, libvirtSocket)) },
		"a file":             func(dir string) error { return os.WriteFile(filepath.Join(dir, libvirtSocket), nil, 0o600) },
		"a directory that is a link": func(dir string) error {
			return errors.Join(os.Remove(dir), os.Symlink(filepath.Dir(elsewhere), dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, dir := launcherDir(t)
			if err := put(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Watch(t.Context(), l); err == nil || errors.Is(err, ErrNone) && name != "a directory that is a link" {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("a UID with a path", func(t *testing.T) {
		l, _ := launcherDir(t)
		l.UID = "../" + l.UID
		if _, err := Watch(t.Context(), l); err == nil {
			t.Error("no error")
		}
	})
}

func TestNoLauncher(t *testing.T) {
	l, _ := launcherDir(t)
	if _, err := Watch(t.Context(), l); !errors.Is(err, ErrNone) {
		t.Errorf("error %v, want ErrNone", err)
	}
}

func TestPacketsAreBounded(t *testing.T) {
	for _, size := range []uint32{0, rpcHeader - 1, rpcMax + 1, 1<<32 - 1} {
		b := append(binary.BigEndian.AppendUint32(nil, size), make([]byte, rpcHeader)...)
		if _, err := readPacket(bytes.NewReader(b)); !errors.Is(err, errMalformed) {
			t.Errorf("%d bytes: error %v", size, err)
		}
	}
}

func FuzzLibvirt(f *testing.F) {
	good := append(xdrString(make([]byte, 4), "vm"), make([]byte, 20)...)
	good = append(good, 0, 0, 0, 3, 0, 0, 0, 1)
	f.Add(packet{program: remoteProgram, procedure: procLifecycle, kind: kindMessage, payload: good}.encode())
	f.Add([]byte{0, 0, 0, 27})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readPacket(bytes.NewReader(b))
		if err != nil {
			return
		}
		if e, err := lifecycle(p.payload); err != nil && e != 0 {
			t.Errorf("event %v with error %v", e, err)
		}
		_ = errorText(p.payload)
	})
}

func FuzzQEMU(f *testing.F) {
	f.Add([]byte(`{"event":"STOP"}` + "\n" + `{"event":"MIGRATION","data":{"status":"active"}}` + "\n" + `{"event":"STOP"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		defer func() { _ = near.Close() }()
		go func() {
			_, _ = far.Write(b) // the other end may have had enough
			_ = far.Close()
		}()
		q := newQMP(near)
		for range len(b) + 2 {
			if _, err := q.next(); err != nil {
				return
			}
		}
		t.Error("no end")
	})
}
