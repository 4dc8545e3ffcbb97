package netdev

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"
)

// counting is nftables that counts what is written.
type counting struct {
	knftables.Interface
	operations int
}

// Run implements knftables.Interface.
func (c *counting) Run(ctx context.Context, tx *knftables.Transaction) error {
	c.operations += tx.NumOperations()
	return c.Interface.Run(ctx, tx)
}

// count lets a table count from now on.
func (w *world) count() *counting {
	c := &counting{Interface: w.table.nft}
	w.table.nft = c
	return c
}

// A connection goes on while its frontend changes around it, also when its backend is none any more.
func TestBalanceKeepsConnections(t *testing.T) {
	w := newWorld(t, 4)
	four, _ := w.servePods(4, 8080)
	for name, c := range map[string]struct {
		from Host
		to   string
	}{"host": {w.node, clusterIP + ":80"}, "outside": {w.outside, nodeIP + ":30080"}} {
		for _, f := range []Frontend{tcp(clusterIP, 80), tcp("0.0.0.0", 30080)} {
			w.table.Set(f, all(four[:2]...))
		}
		w.write()
		conn, err := w.dial(c.from, "", "tcp", c.to)
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		if _, err := in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		echo := func(when string) {
			t.Helper()
			if _, err := fmt.Fprintln(conn, when); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if got, err := in.ReadString('\n'); err != nil || strings.TrimSpace(got) != when {
				t.Errorf("%s, %s: heard %q (%v)", name, when, got, err)
			}
		}
		echo("at first")
		for _, f := range []Frontend{tcp(clusterIP, 80), tcp("0.0.0.0", 30080)} {
			w.table.Set(f, all(four[2:]...))
		}
		w.write()
		echo("when its backend is gone")
		w.table.forget()
		w.write()
		echo("when the table is replaced")
		for _, f := range []Frontend{tcp(clusterIP, 80), tcp("0.0.0.0", 30080)} {
			w.table.Delete(f)
		}
		w.write()
		echo("when the frontend is gone")
		_ = conn.Close()
	}
}

// Somebody else empties nftables, or a part of the table: the next Write makes it whole.
func TestBalanceAfterFlush(t *testing.T) {
	w := newWorld(t, 2)
	four, _ := w.servePods(2, 8080)
	w.table.Set(tcp(clusterIP, 80), all(four...))
	w.write()
	flushNFT(t, w.node)
	if a, err := w.ask(w.node, "tcp", clusterIP+":80"); err == nil {
		t.Fatalf("without a table: %v", a)
	}
	w.table.Doubt()
	w.write()
	if _, err := w.ask(w.node, "tcp", clusterIP+":80"); err != nil {
		t.Error(err)
	}
	c := w.count()
	w.table.Doubt() // it was another's table
	if w.write(); c.operations != 0 {
		t.Errorf("%d operations, and nothing had changed", c.operations)
	}
	w.in(w.node, func() error { return exec.Command("nft", "flush", "map", "inet", balanceTable, "picks-vips4").Run() })
	w.table.Set(tcp(clusterIP, 80), all(four[:1]...))
	if _, err := w.table.Write(t.Context()); err == nil {
		t.Error("a change of what is not there any more succeeded")
	}
	w.write()
	if a, err := w.ask(w.node, "tcp", clusterIP+":80"); err != nil || a.backend != four[0].String() {
		t.Errorf("%v, %v", a, err)
	}
	if err := errors.Join(w.node.RemoveBalancer(t.Context()), w.node.RemoveBalancer(t.Context())); err != nil {
		t.Fatal(err)
	}
	var out []byte
	w.in(w.node, func() (err error) { out, err = exec.Command("nft", "list", "ruleset").Output(); return err })
	if len(out) > 0 {
		t.Errorf("after its removal there is\n%s", out)
	}
}

// An older version may have left maps of another kind.
func TestBalanceReplacesOtherKinds(t *testing.T) {
	w := newWorld(t, 1)
	four, _ := w.servePods(1, 8080)
	w.in(w.node, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table inet " + balanceTable + " {\n map picks-vips4 { type ipv4_addr : verdict; }\n}\n")
		return cmd.Run()
	})
	w.table.Set(tcp(clusterIP, 80), all(four...))
	w.write()
	if _, err := w.ask(w.node, "tcp", clusterIP+":80"); err != nil {
		t.Error(err)
	}
}

// Datagrams from one port follow a change of the backends, which conntrack would not let them.
func TestBalanceDatagrams(t *testing.T) {
	w := newWorld(t, 3)
	var backends []netip.AddrPort
	for i := range 3 {
		backends = append(backends, netip.AddrPortFrom(netip.MustParseAddr(podIP(i)), 53))
		w.serve(w.pods, "udp", backends[i].String())
	}
	dns, port := Frontend{Addr: netip.MustParseAddr(clusterIP), Protocol: UDP, Port: 53}, Frontend{Addr: netip.MustParseAddr("0.0.0.0"), Protocol: UDP, Port: 30053}
	early, err := w.dial(w.node, "", "udp", clusterIP+":53")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := hear(early, "udp"); err == nil {
		t.Fatalf("nobody serves, and %v answers", a)
	}
	set := func(to ...netip.AddrPort) {
		t.Helper()
		w.table.Set(dns, all(to...))
		w.table.Set(port, all(to...))
		w.write()
	}
	set(backends[0])
	if a, err := hear(early, "udp"); err != nil || a.backend != backends[0].String() {
		t.Errorf("who has sent before there was a backend: %v, %v", a, err)
	}
	outer, err := w.dial(w.outside, "", "udp", nodeIP+":30053")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := hear(outer, "udp"); err != nil || a.backend != backends[0].String() || a.seen != clientsIP {
		t.Errorf("from outside: %v, %v", a, err)
	}
	set(backends...)
	if a, err := hear(early, "udp"); err != nil || a.backend != backends[0].String() {
		t.Errorf("a backend that is still one: %v, %v, want %s as before", a, err, backends[0])
	}
	set(backends[2])
	for name, conn := range map[string]net.Conn{"host": early, "outside": outer} {
		if a, err := hear(conn, "udp"); err != nil || a.backend != backends[2].String() {
			t.Errorf("%s: after its backend is gone %v, %v, want %s", name, a, err, backends[2])
		}
	}
	set()
	if a, err := hear(early, "udp"); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) {
		t.Errorf("after all backends are gone: %v, %v, want it refused", a, err)
	}
}

// broken is nftables that cannot be written.
type broken struct{ knftables.Interface }

// Run implements knftables.Interface.
func (broken) Run(context.Context, *knftables.Transaction) error {
	return errors.New("the table is busy")
}

// Datagrams do not go on to a backend that went while nobody, or nobody who knew it, could write.
func TestBalanceDatagramsOfBefore(t *testing.T) {
	w := newWorld(t, 1)
	backend := netip.AddrPortFrom(netip.MustParseAddr(podIP(0)), 53)
	w.serve(w.pods, "udp", backend.String())
	six := netip.AddrPortFrom(netip.MustParseAddr(podIP6(0)), 53)
	w.serve(w.pods, "udp", six.String())
	at := func(addr string, port uint16) Frontend {
		return Frontend{Addr: netip.MustParseAddr(addr), Protocol: UDP, Port: port}
	}
	emptied, gone, port, gone6 := at(clusterIP, 53), at(clusterIP, 54), at("0.0.0.0", 30053), at(clusterIP6, 53)
	for name, change := range map[string]func(){
		"another agent": func() {
			passage := w.table.passage
			w.table = w.node.NewBalancer()
			w.table.SetPassage(passage)
			w.table.Set(emptied, all())
		},
		"a write that failed": func() {
			w.table.Set(emptied, all())
			for _, f := range []Frontend{gone, port, gone6} {
				w.table.Delete(f)
			}
			nft := w.table.nft
			w.table.nft = broken{nft}
			for range 2 {
				if _, err := w.table.Write(t.Context()); err == nil {
					t.Fatal("it was written")
				}
			}
			w.table.nft = nft
			flushNFT(t, w.node)
		},
	} {
		for _, f := range []Frontend{emptied, gone, port} {
			w.table.Set(f, all(backend))
		}
		w.table.Set(gone6, all(six))
		w.write()
		conns := map[string]net.Conn{}
		for _, c := range []struct {
			from Host
			to   string
		}{{w.node, clusterIP + ":53"}, {w.outside, clusterIP + ":54"}, {w.outside, nodeIP + ":30053"}, {w.outside, "[" + clusterIP6 + "]:53"}} {
			conn, err := w.dial(c.from, "", "udp", c.to)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := hear(conn, "udp"); err != nil {
				t.Fatalf("%s: %s: %v", name, c.to, err)
			}
			conns[c.to] = conn
		}
		change()
		w.write()
		for to, conn := range conns {
			if a, err := hear(conn, "udp"); err == nil {
				t.Errorf("%s: what goes on to %s, which has no backend any more, still reaches %v", name, to, a)
			}
			_ = conn.Close()
		}
	}
}

// One change costs a few operations, however many backends there are, and all of a thousand are found.
func TestBalanceThousandBackends(t *testing.T) {
	const pods = 1000
	w := newWorld(t, pods)
	var backends []netip.AddrPort
	for i := range pods {
		backends = append(backends, netip.AddrPortFrom(netip.MustParseAddr(podIP(i)), 8080))
	}
	clients := w.serve(w.pods, "tcp", "0.0.0.0:8080")
	w.table.Set(tcp(clusterIP, 80), all(backends...))
	w.write()
	c := w.count()
	for _, change := range []struct {
		name string
		to   []netip.AddrPort
	}{
		{"one less", slices.Delete(slices.Clone(backends), 500, 501)}, {"one more", backends}, {"another", append(slices.Clone(backends[1:]), netip.MustParseAddrPort("10.244.99.1:8080"))},
	} {
		c.operations = 0
		w.table.Set(tcp(clusterIP, 80), all(change.to...))
		w.write()
		if c.operations > 10 {
			t.Errorf("%s: %d operations", change.name, c.operations)
		}
	}
	w.table.Set(tcp(clusterIP, 80), all(backends...))
	w.write()
	const asked = 300
	for range asked {
		if _, err := w.ask(w.node, "tcp", clusterIP+":80"); err != nil {
			t.Fatal(err)
		}
	}
	if got := clients.Load(); got != asked {
		t.Errorf("%d of %d connections arrived", got, asked)
	}
}

// Backends keep their numbers, as far as there are so many.
func TestArrange(t *testing.T) {
	at := func(s string) (out []netip.AddrPort) {
		for _, c := range s {
			out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(c)}), 80))
		}
		return out
	}
	text := func(list []netip.AddrPort) (out string) {
		for _, a := range list {
			b := a.Addr().As4()
			out += string(rune(b[3]))
		}
		return out
	}
	for _, c := range [][3]string{
		{"", "cab", "abc"}, {"abc", "cba", "abc"}, {"abcd", "acd", "adc"}, {"abcd", "bcd", "dbc"}, {"abc", "abcd", "abcd"}, {"abc", "xbc", "xbc"}, {"abc", "", ""}, {"ab", "aab", "ab"},
	} {
		if got := text(arrange(at(c[0]), at(c[1]))); got != c[2] {
			t.Errorf("%q after %q is %q, want %q", c[1], c[0], got, c[2])
		}
	}
}

// What is written change by change is what is written at once.
func TestBalanceChangesAddUp(t *testing.T) {
	fronts := []Frontend{tcp(clusterIP, 80), tcp("0.0.0.0", 30080), tcp(clusterIP6, 80)}
	pool := map[bool][]netip.AddrPort{}
	for i := range 5 {
		pool[true] = append(pool[true], netip.AddrPortFrom(netip.MustParseAddr(podIP(i)), 8080))
		pool[false] = append(pool[false], netip.AddrPortFrom(netip.MustParseAddr(podIP6(i)), 8080))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		fake := knftables.NewFake(knftables.InetFamily, balanceTable)
		b := Host{}.NewBalancer()
		b.open = func() (knftables.Interface, error) { return fake, nil }
		for range 10 {
			f := fronts[random.IntN(len(fronts))]
			to := Balance{All: Choice{Backends: pick(random, pool[f.Addr.Is4()]), Silent: random.IntN(2) == 0}, Affinity: time.Duration(random.IntN(2)) * time.Hour}
			if random.IntN(3) == 0 {
				to.Outside = &Choice{Backends: pick(random, to.All.Backends), Silent: true}
			}
			if b.Set(f, to); random.IntN(5) == 0 {
				b.Delete(f)
			}
			if _, err := b.Write(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		want := elements{}
		for f, to := range b.have {
			maps.Copy(want, f.elements(to))
		}
		if d := cmp.Diff(want, found(fake), cmp.AllowUnexported(element{})); d != "" {
			t.Fatalf("(-want +got)\n%s", d)
		}
		for f, to := range b.want {
			if !slices.Equal(to.backends(), b.have[f].backends()) {
				t.Errorf("%v has %v, want %v", f, b.have[f].backends(), to.backends())
			}
		}
	}
}

func pick(random *rand.Rand, from []netip.AddrPort) (out []netip.AddrPort) {
	for _, a := range from {
		if random.IntN(2) == 0 {
			out = append(out, a)
		}
	}
	return out
}

// found are the elements of a table that frontends have.
func found(fake *knftables.Fake) elements {
	out := elements{}
	for name, m := range fake.Table.Maps {
		for _, e := range m.Elements {
			out[element{name, strings.Join(e.Key, " . ")}] = strings.Join(e.Value, " . ")
		}
	}
	return out
}
