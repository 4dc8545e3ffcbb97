package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestKernelSCTP: two pods on two nodes have an SCTP association, in both families. (TestKernelConntrack tracks one.)
func TestKernelSCTP(t *testing.T) {
	s := newScene(t, "sctp")
	server, client := s.pod(0, "server"), s.pod(1, "client")
	const messages = 20
	for i, addr := range server.Addrs() {
		at := netip.AddrPortFrom(addr, uint16(9000+i))
		log := s.daemon(server.Netns, "tool", "sctp", "serve", at.String())
		s.says(log, "listening")
		out := s.run(client.Netns, "tool", "sctp", "ask", at.String(), fmt.Sprint(messages))
		lines := strings.Split(out, "\n")
		want := fmt.Sprintf("message %d from %s", messages-1, client.Addrs()[i])
		if len(lines) != messages || lines[messages-1] != want {
			t.Errorf("server at %s answered %q, want %d lines, the last of them %q", at, lines, messages, want)
		}
	}
}
