package agent

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
)

// HandsOver says whether the agent that serves metrics on an address of this node, as --metrics-address has it, hands connections of VMs over: only it knows. False where it does not say, as one of
// before that.
func HandsOver(ctx context.Context, address string) (bool, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false, fmt.Errorf("--metrics-address: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port)+"/metrics", nil)
	if err != nil {
		return false, fmt.Errorf("--metrics-address %s: %w", address, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, fmt.Errorf("ask the agent at --metrics-address %s: %w", address, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing is lost with it
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("ask the agent at --metrics-address %s: it answers %s", address, resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if lines.Text() == "godwit_agent_handoff_enabled 1" {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("read what the agent at --metrics-address %s answers: %w", address, err)
	}
	return false, nil
}
