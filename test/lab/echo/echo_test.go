package echo

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestServersAnswerWithTheClientsAddress(t *testing.T) {
	echoAddr, httpAddr := freePort(t), freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, Config{TCP: echoAddr, UDP: echoAddr, HTTP: httpAddr, Name: "me"}) }()
	targets := []string{"tcp://" + echoAddr, "udp://" + echoAddr, "http://" + httpAddr + "/", "tcp://127.0.0.1:1", "gopher://x"}
	want := []string{"127.0.0.1 probe", "127.0.0.1 probe", "127.0.0.1 me", "", ""}
	var results []Result
	for range 200 { // until the servers listen
		if results = Probe(ctx, 2*time.Second, targets); results[0].Err == nil && results[1].Err == nil && results[2].Err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	for i, r := range results {
		if r.Answer != want[i] || (want[i] == "") != (r.Err != nil) || !strings.Contains(r.String(), r.Target) {
			t.Errorf("result %d: %v, want answer %q", i, r, want[i])
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
