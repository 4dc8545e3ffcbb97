package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/godwit-cni/godwit/test/policy/oracle"
)

// wrongAnswer is one that is not as the oracle says.
type wrongAnswer struct {
	question
	said string
	want oracle.Verdict
}

func (a wrongAnswer) String() string {
	return fmt.Sprintf("%s → %s: %s, want %v (%s)\n", a.from, a.target, a.said, a.want.Allowed, a.want.Why)
}

// mistakes are the wrong answers of each time that everybody who was not right yet was asked.
type mistakes [][]wrongAnswer

// explain tells how often each question of the last time was answered wrongly, and what the datapaths have for the first of them: something that is lost now and then is not something that stays forbidden.
func (m mistakes) explain(t *testing.T) {
	t.Helper()
	i := len(m) - 1
	for i >= 0 && len(m[i]) == 0 {
		i--
	}
	if i < 0 {
		return
	}
	often := map[string]int{}
	for _, round := range m {
		for _, a := range round {
			often[a.from+a.target]++
		}
	}
	for _, a := range m[i] {
		t.Logf("%s → %s was answered wrongly %d times of %d", a.from, a.target, often[a.from+a.target], len(m))
	}
	flow := m[i][0].flow
	for _, node := range []string{nodeOf(flow.From), nodeOf(flow.To)} {
		if node == "" {
			continue
		}
		out, err := cluster.Exec(context.WithoutCancel(t.Context()), node, "ovs-appctl", "dpctl/dump-flows", "-m")
		if err != nil {
			t.Log(err)
		}
		of := slices.DeleteFunc(slices.Collect(strings.Lines(out)), func(line string) bool {
			return !hasAddr(line, flow.From.Addr) && !hasAddr(line, flow.To.Addr)
		})
		t.Logf("%s has for %s and %s:\n%s", node, flow.From.Addr, flow.To.Addr, strings.Join(of, ""))
	}
}

// hasAddr says whether a flow of a datapath has the address.
func hasAddr(flow string, ip netip.Addr) bool {
	return slices.Contains(strings.FieldsFunc(flow, func(r rune) bool { return strings.ContainsRune("=,/()", r) }), ip.String())
}

// nodeOf is where an end is, empty if it is outside.
func nodeOf(e oracle.End) string {
	if e.Pod != nil {
		return e.Pod.Node
	}
	return e.Node
}
