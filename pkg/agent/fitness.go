package agent

import (
	"bufio"
	"cmp"
	"context"
	"net"
	"net/http"
)

// HandsOver says whether the agent that serves metrics on an address of this node, as --metrics-address has it, hands connections of VMs over: only it knows. False where it does not say.
func HandsOver(ctx context.Context, address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port)+"/metrics", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close() //nolint:errcheck // nothing is lost with it
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if lines.Text() == "godwit_agent_handoff_enabled 1" {
			return true
		}
	}
	return false
}
