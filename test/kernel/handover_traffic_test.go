package kernel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// Who has opened a connection.
const (
	peers  = "the peer's"
	guests = "the VM's"
)

// probeEvery is between two probes to one address.
const probeEvery = 50 * time.Millisecond

// carriage is traffic between an isolated VM and its peer.
type carriage struct {
	*isolated
	runs []carriageRun
}

type carriageRun struct {
	who    string
	client *traffic.Client
	id     traffic.RunID
}

// carry begins connections of each kind each way. The peer sends probes besides, which the policy permits and which are judged anew wherever they arrive: how long they
// get no answer is the interruption. Of what is slow, ten bytes a second, the receiver has acknowledged everything nearly all the time, so that the first that the
// target sees of it is the sender's segment. They are few: a stream of whatever rate is a hundred wake-ups a second, before all else, on an emulated processor.
func (s *isolated) carry() *carriage {
	s.t.Helper()
	c := &carriage{isolated: s}
	every := func(d time.Duration) traffic.Duration { return traffic.Duration{Duration: d} }
	const slow, fast = 10, 20_000
	spec := traffic.Spec{Echo: traffic.Echoing{Connections: 2, Interval: every(100 * time.Millisecond)}, Silence: every(5 * time.Minute)}
	spec.Peers, spec.Upload, spec.Download = s.peer.Addrs(), traffic.Bulk{Connections: 1, Rate: fast}, traffic.Bulk{Connections: 2, Rate: slow}
	c.begin(guests, s.fromVM, spec)
	spec.Peers, spec.Upload, spec.Download = s.vm.Live.Addrs(), traffic.Bulk{Connections: 1, Rate: slow}, traffic.Bulk{Connections: 1, Rate: fast}
	slices.Reverse(spec.Peers) // the streams of one begin with IPv4, those of the other with IPv6
	spec.Probe.Interval = every(probeEvery)
	c.begin(peers, s.fromPeer, spec)
	return c
}

// begin starts a run. On a machine that is busy connections fail to open: then it is tried again.
func (c *carriage) begin(who string, client *traffic.Client, spec traffic.Spec) {
	c.t.Helper()
	c.await("connections of "+who, func(ctx context.Context) error {
		id, err := client.Start(ctx, spec)
		if err != nil {
			return err
		}
		if err := client.AwaitOpen(ctx, id); err != nil {
			_, serr := client.Stop(ctx, id)
			return errors.Join(err, serr)
		}
		c.runs = append(c.runs, carriageRun{who, client, id})
		return nil
	})
}

// carried is a connection, and who has opened it.
type carried struct {
	traffic.Connection
	who string
	// stalled is when it stood still for longest, and lost for how long probes got no answer then.
	stalled time.Time
	lost    time.Duration
}

// beyond is how much longer it stood still than the probes got no answer.
func (c carried) beyond() time.Duration { return c.Stall.Length() - c.lost }

// died: it is broken, or does not go on, or has done so only when a keepalive came. One that is merely late, on a machine that sends again after seconds, goes on by itself. How late connections
// may be the end-to-end tests tell.
func (c carried) died() bool {
	revived := c.who == guests && c.Kind == traffic.Download && c.Stall.Length() >= keepalive && c.beyond() > deadFor
	return c.Broken != "" || c.Bytes == 0 || c.Stall.Open && c.beyond() > stallLimit || revived
}

func (c carried) String() string {
	text := fmt.Sprintf("%s, %s to %s: %d bytes, stood still for %s at %s, %s of it beyond the interruption", c.who, c.Kind, c.Peer, c.Bytes,
		c.Stall.Length().Round(time.Millisecond), c.stalled.Format("15:04:05.000"), c.beyond().Round(time.Millisecond))
	if c.Stall.Open {
		text += ", to the end"
	}
	if c.Broken != "" {
		text += fmt.Sprintf(", broken: %s, %s", c.Broken, c.Error)
	}
	return text
}

// goOn waits until all connections make progress: one that is dead makes none until the end, one that waits for a busy machine does before.
func (c *carriage) goOn() {
	c.t.Helper()
	for end := time.Now().Add(goesOnWithin); time.Now().Before(end); time.Sleep(time.Second) {
		idle := time.Duration(0)
		for _, run := range c.runs {
			status, err := run.client.Status(c.t.Context(), run.id)
			if err != nil {
				c.t.Fatal(err)
			}
			idle = max(idle, status.Idle.Duration)
		}
		if idle < underWay {
			return
		}
	}
}

// stop ends the traffic and returns all connections.
func (c *carriage) stop() []carried {
	c.t.Helper()
	var out []carried
	var probes []traffic.Probes
	for _, run := range c.runs {
		r, err := run.client.Stop(c.t.Context(), run.id)
		if err != nil {
			c.t.Fatal(err)
		}
		probes = append(probes, r.Probes...)
		for _, conn := range r.Connections {
			out = append(out, carried{Connection: conn, who: run.who, stalled: r.Start.Add(conn.Stall.From)})
		}
	}
	for i := range probes {
		p := &probes[i]
		c.t.Logf("probes to %s: %d of %d answered, for %s none was at %s", p.Peer, p.Counts.Received, p.Counts.Sent, p.Gap.Length().Round(time.Millisecond), p.Start.Add(p.Gap.From).Format("15:04:05.000"))
	}
	for i := range out {
		conn := &out[i]
		for k := range probes {
			conn.lost = max(conn.lost, probes[k].Within(conn.stalled, conn.stalled.Add(conn.Stall.Length())).Length())
		}
		c.t.Log(conn)
	}
	return out
}

// dial opens a connection to an echo port from a namespace, and has something echoed. It ends with the test.
func (s *isolated) dial(netns string, to netip.Addr) net.Conn {
	s.t.Helper()
	conn, err := s.DialIn(netns)(s.t.Context(), "tcp", netip.AddrPortFrom(to, 7).String())
	if err == nil {
		s.t.Cleanup(func() { _ = conn.Close() })
		err = echoed(conn)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// echoWithin is how long an answer may take on an emulated processor.
const echoWithin = 20 * time.Second

// echoed has something echoed.
func echoed(conn net.Conn) error { return echoedWithin(conn, echoWithin) }

func echoedWithin(conn net.Conn, within time.Duration) error {
	const word = "godwit\n"
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	got, err := bufio.NewReader(conn).ReadString('\n')
	if got != word {
		err = errors.Join(fmt.Errorf("%q came back, want %q", got, word), err)
	}
	return err
}
