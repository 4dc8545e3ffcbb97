package echo

import (
	"net"
	"strings"
	"testing"
	"time"
)

// A datagram that is lost is sent again, one that nobody answers is a failure in time, and each result is one line.
func TestProbedDatagrams(t *testing.T) {
	once, never := deaf(t, 1), deaf(t, 1000)
	const within = 3 * resend
	start := time.Now()
	results := Probe(t.Context(), within, []string{"udp://" + once + "/text", "udp://" + never})
	if took := time.Since(start); took < within || took > within+20*time.Second {
		t.Errorf("all took %s, want %s", took, within)
	}
	if r := results[0]; r.Err != nil || r.Answer != "text" || r.Took < resend {
		t.Errorf("%s: want the answer to the second datagram", r)
	}
	if r := results[1]; r.Err == nil || strings.Contains(r.String(), "\n") || !strings.HasPrefix(r.String(), "failed udp://") {
		t.Errorf("%q: want a failure in one line", r)
	}
}

// deaf is the address of a server that answers datagrams, but for so many first ones.
func deaf(t *testing.T, first int) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		buf := make([]byte, 100)
		for i := 0; ; i++ {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if i >= first {
				_, _ = pc.WriteTo(buf[:n], from)
			}
		}
	}()
	return pc.LocalAddr().String()
}
