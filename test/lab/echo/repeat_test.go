package echo

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

// What is asked over and over is counted by what became of it, here and at a desk.
func TestQuestionsAreCounted(t *testing.T) {
	server, deskAddr := freePort(t), freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, Config{TCP: server, UDP: server, Desk: deskAddr}) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, in its kernel, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Close() }()
	const within, every = 2 * time.Second, 20 * time.Millisecond
	order := Order{Every: every}
	for _, target := range []string{"tcp://" + server, "udp://" + server, "tcp://" + silent.Addr().String(), "udp://" + mute.LocalAddr().String(), "tcp://127.0.0.1:1", "http://x"} {
		order.Questions = append(order.Questions, Question{target, within})
	}
	var dialer net.Dialer
	desk := NewDesk(dialer.DialContext, netip.MustParseAddrPort(deskAddr))
	for range 4000 { // until it listens
		if err = desk.Begin(t.Context(), order); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	here := Repeat(t.Context(), dialer.DialContext, order.Questions, every)
	time.Sleep(2*within + 200*time.Millisecond)
	if now, err := desk.Tallies(t.Context()); err != nil || len(now) != len(order.Questions) || now[0].Answered == 0 {
		t.Errorf("the desk says %v (%v)", now, err)
	}
	there, err := desk.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for where, tallies := range map[string][]Tally{"here": here.Stop(), "desk": there} {
		for i, q := range tallies {
			answers, connects := i < 2, i < 3
			if q.Target != order.Questions[i].Target || q.Asked == 0 || (q.Answered > 0) != answers || (q.Connected > 0) != connects || (q.Failure == "") != answers {
				t.Errorf("%s: %s", where, q)
			}
			if answers && (q.Asked < 5 || q.Answered != q.Asked || q.Slowest == 0) {
				t.Errorf("%s: %s: want all of many answered", where, q)
			}
		}
	}
}

// A datagram that is lost is sent again.
func TestDatagramsAreSentAgain(t *testing.T) {
	var dialer net.Dialer
	start := time.Now()
	answered, err := Question{"udp://" + deaf(t, 1), 10 * time.Second}.ask(t.Context(), dialer.DialContext)
	if took := time.Since(start); !answered || err != nil || took < resend {
		t.Errorf("answered %t after %s: %v, want an answer to the second", answered, took, err)
	}
}
