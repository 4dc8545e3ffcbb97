package traffic

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// lateEnough is how late a sender may be before a test blames the machine, not the program.
const lateEnough = 50 * time.Millisecond

func TestNothingIsLostOnAQuietNetwork(t *testing.T) {
	n := newNetwork(t)
	here, there := serve(t, n.here, n.here4), serve(t, n.there, n.there4)
	spec := Usual(n.there4, n.there6)
	id, err := here.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := here.AwaitOpen(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	time.Sleep(ms(1500))
	r, err := here.Stop(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	arrivals, err := there.Arrivals(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if open, broken := r.Open(); open != 10 || broken != 0 {
		t.Errorf("%d connections open, %d broken; want 10, 0: %+v", open, broken, r.Connections)
	}
	if len(r.Probes) != 2 {
		t.Fatalf("%d flows of probes, want one for each peer", len(r.Probes))
	}
	for i := range r.Probes {
		for side, p := range map[string]Probes{"replies": r.Probes[i], "one way": OneWay(&r.Probes[i], arrivals)} {
			c := p.Counts
			if want := int(r.Length / ms(5)); c.Sent < want-20 || c.Sent > want+20 || c.Received != c.Sent || c.Lost+c.Duplicated+c.Reordered+c.Corrupt+c.Refused != 0 {
				t.Errorf("%s of %s: %+v; want %d sent and nothing else", side, p.Peer, c, want)
			}
			if p.Gap.Length() > ms(5)+p.Late+lateEnough || p.Gap.Open {
				t.Errorf("%s of %s: gap %+v, sender late %s", side, p.Peer, p.Gap, p.Late)
			}
			t.Logf("%s of %s: gap %s, sender paused %s, late %s", side, p.Peer, p.Gap.Length(), p.Gap.Paused, p.Late)
		}
	}
	checkProgress(t, r)
	if len(arrivals.Connections) != 10 {
		t.Errorf("the peer has seen %d connections, want 10", len(arrivals.Connections))
	}
	for _, c := range arrivals.Connections {
		if c.Broken != "" || c.Bytes == 0 || c.Ended == 0 {
			t.Errorf("the peer says of a connection: %+v; want bytes, and an end in order", c)
		}
	}
	if r.ClockStep.Abs() > ms(5) {
		t.Errorf("clock step %s", r.ClockStep)
	}
}

// checkProgress looks at connections on which nothing has happened.
func checkProgress(t *testing.T, r *Result) {
	t.Helper()
	for _, c := range r.Connections {
		sum := int64(0)
		for _, b := range c.Buckets {
			sum += b
		}
		want := int64(r.Length.Seconds() * 250_000)
		switch {
		case sum != c.Bytes:
			t.Errorf("connection %d: buckets have %d bytes, all are %d", c.Number, sum, c.Bytes)
		case c.Kind == Echo && (c.Bytes < 64*20 || c.Wait == 0):
			t.Errorf("connection %d: %d bytes echoed, longest wait %s", c.Number, c.Bytes, c.Wait)
		case c.Kind != Echo && (c.Bytes < want*8/10 || c.Bytes > want*11/10):
			t.Errorf("connection %d (%s): %d bytes, want about %d", c.Number, c.Kind, c.Bytes, want)
		}
		if c.Stall.Length() > ms(60)+2*lateEnough {
			t.Errorf("connection %d (%s) stalled for %s", c.Number, c.Kind, c.Stall.Length())
		}
	}
}

// A cut of 200 ms is seen as one by who asks, by who is asked, and by the connections, which live on.
func TestCut(t *testing.T) {
	n := newNetwork(t)
	here, there := serve(t, n.here, n.here4), serve(t, n.there, n.there4)
	ids := map[*Client]RunID{}
	for c, peer := range map[*Client]netip.Addr{here: n.there4, there: n.here6} {
		id, err := c.Start(t.Context(), Usual(peer))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AwaitOpen(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		ids[c] = id
	}
	time.Sleep(ms(300))
	least, most := cut(t, n.there, ms(200))
	if most > ms(210) {
		t.Logf("the fault itself lasted between %s and %s", least, most)
	}
	time.Sleep(ms(1500))
	for c, name := range map[*Client]string{here: "from here", there: "from there"} {
		r, err := c.Stop(t.Context(), ids[c])
		if err != nil {
			t.Fatal(err)
		}
		other := map[*Client]*Client{here: there, there: here}[c]
		arrivals, err := other.Arrivals(t.Context(), ids[c])
		if err != nil {
			t.Fatal(err)
		}
		sides := map[string]Probes{"replies": r.Probes[0], "one way": OneWay(&r.Probes[0], arrivals)}
		if c == there { // only the way to there was cut
			if p := sides["one way"]; p.Counts.Lost != 0 || p.Gap.Length() > ms(100) {
				t.Errorf("%s, one way: %d lost, gap %s; want none", name, p.Counts.Lost, p.Gap.Length())
			}
			delete(sides, "one way")
		}
		for side, p := range sides {
			gap := p.Gap.Length()
			if gap < least-ms(1) || gap > most+ms(10)+p.Late || p.Gap.Open {
				t.Errorf("%s, %s: gap %+v of %s (sender late %s), want %s to %s and an interval", name, side, p.Gap, gap, p.Late, least, most)
			}
			// As many as were sent while it lasted, give or take one at each end.
			if lost := time.Duration(p.Counts.Lost) * ms(5); lost < least-ms(10) || lost > most+ms(10)+p.Late {
				t.Errorf("%s, %s: %d lost, want about %d", name, side, p.Counts.Lost, least/ms(5))
			}
			t.Logf("%s, %s: cut %s..%s, gap %s, %d lost, late %s", name, side, least, most, gap, p.Counts.Lost, p.Late)
		}
		for _, conn := range r.Connections {
			if c == here && conn.Kind == Download && conn.Broken == "" {
				continue // only its acknowledgements were lost
			}
			if conn.Broken != "" || conn.Stall.Length() < least-ms(60) || conn.Stall.Length() > ms(1200) {
				t.Errorf("%s: connection %d (%s) broken %q (%s), stalled %s; want it whole after a stall of %s or more", name, conn.Number, conn.Kind, conn.Broken, conn.Error,
					conn.Stall.Length(), least)
			}
		}
	}
}

// distort relays datagrams between a run and its server, from one port to another, and does harm to requests by their sequence number.
func distort(ctx context.Context, place Place, to string) error {
	listen, err := place.listenUDP(ctx, ":7777")
	if err != nil {
		return err
	}
	upstream, err := place.Dial(ctx, "udp", to)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _, _ = listen.Close(), upstream.Close() })()
	from := make(chan net.Addr, 1)
	go func() {
		buf, client := make([]byte, 2000), <-from
		for {
			n, err := upstream.Read(buf)
			if err != nil {
				return
			}
			_, _ = listen.WriteTo(buf[:n], client)
		}
	}()
	var held []byte
	for buf := make([]byte, 2000); ; {
		n, client, err := listen.ReadFrom(buf)
		if err != nil {
			return nil //nolint:nilerr // closed
		}
		select {
		case from <- client:
		default:
		}
		p, _, _ := parseProbe(buf[:n])
		send := [][]byte{buf[:n]}
		switch p.seq % 20 {
		case 3: // lost
			send = nil
		case 5, 6: // three times
			send = append(send, buf[:n], buf[:n])
		case 8: // wrong
			buf[30] ^= 1
		case 11: // overtaken by the next
			held, send = append([]byte(nil), buf[:n]...), nil
		case 12:
			send = append(send, held)
		}
		for _, b := range send {
			if _, err := upstream.Write(b); err != nil {
				return err
			}
		}
	}
}

func TestLostDuplicatedReorderedAndCorruptAreCounted(t *testing.T) {
	n := newNetwork(t)
	there := serve(t, n.there, n.there4)
	background(t, func(ctx context.Context) error { return distort(ctx, Place{Namespace: n.there.Path()}, "10.9.0.2:7") })
	time.Sleep(ms(50))
	spec := Spec{Peers: []netip.Addr{n.there4}, Ports: Ports{Probe: 7777}, Probe: Probing{Interval: Duration{ms(2)}}, Length: Duration{ms(1000)}}
	run, err := Begin(t.Context(), Place{Namespace: n.here.Path()}, spec)
	if err != nil {
		t.Fatal(err)
	}
	r, err := run.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	arrivals, err := there.Arrivals(t.Context(), r.Run)
	if err != nil {
		t.Fatal(err)
	}
	var want Counts
	for seq := range r.Probes[0].Counts.Sent {
		want.Sent++
		switch seq % 20 {
		case 3:
			want.Lost++
		case 5, 6:
			want.Duplicated += 2
		case 8:
			want.Lost++
			want.Corrupt++
		case 11:
			if seq+1 == r.Probes[0].Counts.Sent {
				want.Lost++
			} else {
				want.Reordered++
			}
		}
	}
	want.Received = want.Sent - want.Lost
	if want.Sent < 450 {
		t.Fatalf("%d probes sent in a second, want about 500", want.Sent)
	}
	for side, p := range map[string]Probes{"replies": r.Probes[0], "one way": OneWay(&r.Probes[0], arrivals)} {
		if p.Counts != want {
			t.Errorf("%s: %+v\nwant %+v", side, p.Counts, want)
		}
	}
	if d := arrivals.Duplicated(); d != want.Duplicated {
		t.Errorf("the peer counts %d duplicates, want %d", d, want.Duplicated)
	}
	again := arrivals.Twice(r)
	if len(again) != want.Duplicated {
		t.Errorf("%d probes were sent that came twice, want %d", len(again), want.Duplicated)
	}
	for _, at := range again {
		if at.Before(r.Probes[0].Start) || at.After(time.Now()) {
			t.Errorf("a probe that came twice was sent at %s, the run began at %s", at, r.Probes[0].Start)
		}
	}
}

// Every way in which a connection can break, by a peer that does it.
func TestBrokenConnections(t *testing.T) {
	n := newNetwork(t)
	there := Place{Namespace: n.there.Path()}
	reset := func(c *net.TCPConn) { _ = c.SetLinger(0) }
	linger := func(*net.TCPConn) { time.Sleep(ms(1500)) }
	for _, tc := range []struct {
		name  string
		kinds []Kind
		// peer is called some time after the connection was accepted, and then it is closed.
		peer func(*net.TCPConn)
		want Reason
	}{
		{"reset", []Kind{Echo, Upload, Download}, reset, Reset},
		{"closed", []Kind{Echo, Download}, func(c *net.TCPConn) { _, _ = io.CopyN(io.Discard, c, 32); drain(c) }, EOF},
		{"silent", []Kind{Echo, Download}, linger, Timeout},
		{"nonsense", []Kind{Echo, Download}, func(c *net.TCPConn) { _, _ = c.Write(make([]byte, 100)); time.Sleep(ms(200)) }, Corrupt},
		{"not there", []Kind{Echo, Upload, Download}, nil, Refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.peer != nil {
				l, err := there.listen(t.Context(), ":7")
				if err != nil {
					t.Fatal(err)
				}
				background(t, func(ctx context.Context) error { return meanPeer(ctx, l, tc.peer) })
			}
			spec := Spec{Peers: []netip.Addr{n.there4}, Ports: Ports{Sink: 7, Source: 7}, Length: Duration{ms(1200)}, Silence: Duration{ms(400)}}
			for _, k := range tc.kinds {
				switch k {
				case Echo:
					spec.Echo.Connections = 1
				case Upload:
					spec.Upload.Connections = 1
				case Download:
					spec.Download.Connections = 1
				}
			}
			run, err := Begin(t.Context(), Place{Namespace: n.here.Path()}, spec)
			if err != nil {
				t.Fatal(err)
			}
			r, err := run.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Connections) != len(tc.kinds) {
				t.Fatalf("%d connections, want %d", len(r.Connections), len(tc.kinds))
			}
			for _, c := range r.Connections {
				if c.Broken != tc.want || c.Error == "" || c.Opened != (tc.want != Refused) {
					t.Errorf("%s: opened %t, broken %q (%s); want %q", c.Kind, c.Opened, c.Broken, c.Error, tc.want)
				}
			}
		})
	}
}

// drain reads what there is, so that closing does not reset, and leaves the reader's half.
func drain(c *net.TCPConn) {
	_ = c.CloseWrite()
	time.Sleep(ms(100))
	_ = c.SetReadDeadline(time.Now().Add(ms(10)))
	_, _ = io.Copy(io.Discard, c)
}

func meanPeer(ctx context.Context, l net.Listener, do func(*net.TCPConn)) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			return nil //nolint:nilerr // closed
		}
		go func() {
			time.Sleep(ms(100))
			if tcp, ok := conn.(*net.TCPConn); ok {
				do(tcp)
			}
			_ = conn.Close()
		}()
	}
}

// A bit that flips under way is found, whichever way it goes.
func TestCorruptStreams(t *testing.T) {
	n := newNetwork(t)
	client := serve(t, n.there, n.there4)
	there := Place{Namespace: n.there.Path()}
	for i, tc := range []struct {
		kind Kind
		port uint16
	}{{Echo, 7}, {Upload, 9}, {Download, 19}} {
		t.Run(string(tc.kind), func(t *testing.T) {
			port := 7100 + i
			l, err := there.listen(t.Context(), fmt.Sprintf(":%d", port))
			if err != nil {
				t.Fatal(err)
			}
			background(t, func(ctx context.Context) error { return flipper(ctx, l, there, fmt.Sprintf("10.9.0.2:%d", tc.port)) })
			spec := Spec{Peers: []netip.Addr{n.there4}, Length: Duration{ms(700)}, Ports: Ports{Echo: uint16(port), Sink: uint16(port), Source: uint16(port)}}
			switch tc.kind {
			case Echo:
				spec.Echo = Echoing{Connections: 1, Interval: Duration{ms(5)}}
			case Upload:
				spec.Upload.Connections = 1
			case Download:
				spec.Download.Connections = 1
			}
			run, err := Begin(t.Context(), Place{Namespace: n.here.Path()}, spec)
			if err != nil {
				t.Fatal(err)
			}
			r, err := run.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c := r.Connections[0]; c.Broken != Corrupt || !strings.Contains(c.Error, "at byte") {
				t.Errorf("broken %q (%s), want %q", c.Broken, c.Error, Corrupt)
			}
			if tc.kind != Upload {
				return
			}
			arrivals, err := client.Arrivals(t.Context(), r.Run)
			if err != nil {
				t.Fatal(err)
			}
			if c := arrivals.Connections[0]; c.Broken != Corrupt {
				t.Errorf("the peer says broken %q (%s), want %q", c.Broken, c.Error, Corrupt)
			}
		})
	}
}

// flipper relays one connection and flips one bit after the first 2,000 bytes each way.
func flipper(ctx context.Context, l net.Listener, place Place, to string) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	client, err := l.Accept()
	if err != nil {
		return err
	}
	server, err := place.Dial(ctx, "tcp", to)
	if err != nil {
		return errors.Join(err, client.Close())
	}
	relay := func(from, to net.Conn) {
		buf, n := make([]byte, 1000), 0
		for {
			got, err := from.Read(buf)
			if n < 2000 && n+got >= 2000 {
				buf[got-1] ^= 4
			}
			n += got
			_, werr := to.Write(buf[:got])
			if err != nil || werr != nil {
				if tcp, ok := to.(*net.TCPConn); ok {
					_ = tcp.CloseWrite()
				}
				return
			}
		}
	}
	done := make(chan struct{}, 2)
	go func() { relay(client, server); done <- struct{}{} }()
	go func() { relay(server, client); done <- struct{}{} }()
	select {
	case <-done:
		time.Sleep(ms(100)) // what goes the other way still
	case <-ctx.Done():
	}
	return errors.Join(client.Close(), server.Close())
}

// The server answers from the address that was asked, also when it is not the one that routing would choose.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	n := newNetwork(t)
	serve(t, n.there, n.there4)
	second4, second6 := netip.MustParseAddr("10.9.0.77"), netip.MustParseAddr("fd09::77")
	if err := n.there.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, address(second4)), netlink.AddrAdd(link, address(second6)))
	}); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Peers: []netip.Addr{n.there4, n.there6, second4, second6}, Probe: Probing{Interval: Duration{ms(5)}}, Length: Duration{ms(100)}}
	run, err := Begin(t.Context(), Place{Namespace: n.here.Path()}, spec)
	if err != nil {
		t.Fatal(err)
	}
	r, err := run.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Probes {
		if p.Counts.Lost != 0 || p.Counts.Sent == 0 {
			t.Errorf("%s: %+v, want all answered", p.Peer, p.Counts)
		}
	}
}

// Who is no run is served all the same: by hand, with nc.
func TestPlainClients(t *testing.T) {
	n := newNetwork(t)
	serve(t, n.there, n.there4)
	here := Place{Namespace: n.here.Path()}
	for _, network := range []string{"tcp", "udp"} {
		conn, err := here.Dial(t.Context(), network, "10.9.0.2:7")
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		for _, line := range []string{"GwTrash\n", "Gw\n", "hello\n"} {
			if _, err := io.WriteString(conn, line); err != nil {
				t.Fatal(err)
			}
			if got, err := in.ReadString('\n'); got != line {
				t.Errorf("%s: echo of %q is %q, %v", network, line, got, err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What a control port is asked wrongly, it says.
func TestControlErrors(t *testing.T) {
	n := newNetwork(t)
	c := serve(t, n.there, n.there4)
	_, err := c.Start(t.Context(), Spec{Probe: Probing{Interval: Duration{time.Microsecond}}})
	if err == nil || !strings.Contains(err.Error(), "peers") || !strings.Contains(err.Error(), "probe.interval") {
		t.Errorf("a spec with two mistakes: %v; want both named", err)
	}
	for name, err := range map[string]error{
		"Stop":     func() error { _, err := c.Stop(t.Context(), 5); return err }(),
		"Status":   func() error { _, err := c.Status(t.Context(), 5); return err }(),
		"Arrivals": func() error { _, err := c.Arrivals(t.Context(), 5); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "0000000000000005") {
			t.Errorf("%s of a run that does not exist: %v", name, err)
		}
	}
}
