package ovnpod

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// answering serves a control socket that knows some commands. To others it says what it has for "".
func answering(t *testing.T, socket string, says map[string]string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var question struct {
				Method string `json:"method"`
			}
			answer := map[string]any{"id": 0, "error": nil}
			if json.NewDecoder(conn).Decode(&question) == nil {
				if said, ok := says[question.Method]; ok {
					answer["result"] = said
				} else {
					answer["error"] = cmp.Or(says[""], "no such command")
				}
				_ = json.NewEncoder(conn).Encode(answer) // the other end sees it
			}
			_ = conn.Close()
		}
	}()
}

func told(t *testing.T, c *Census) string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range all {
		for _, m := range f.GetMetric() {
			line := strings.TrimPrefix(f.GetName(), "godwit_ovn_")
			for _, l := range m.GetLabel() {
				line += "/" + l.GetValue()
			}
			lines = append(lines, fmt.Sprint(line, " ", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// census is of a leader of NB, a follower of SB that knows no leader, and ovn-northd.
func census(t *testing.T, log io.Writer) *Census {
	t.Helper()
	dir, c := shortDir(t), Defaults()
	c.RunDir, c.StateDir = dir, dir
	nb, sb := c.named(ProbeNB), c.named(ProbeSB)
	if err := os.WriteFile(nb.File, make([]byte, 1234), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sb.File, make([]byte, 99), 0o600); err != nil {
		t.Fatal(err)
	}
	answering(t, nb.Control, map[string]string{"cluster/status": leaderStatus, "memory/show": "atoms:991 cells:733 monitors:4 sessions:5"})
	answering(t, sb.Control, map[string]string{
		"cluster/status": "Name: OVN_Southbound\nStatus: cluster member\nRole: candidate\nTerm: 9\nLeader: unknown\nLog: [1, 4]\n", "memory/show": "cells:7 sessions:2",
	})
	answering(t, filepath.Join(dir, "ovn-northd.ctl"), map[string]string{
		"status": "Status: active\n",
		"stopwatch/show": "Statistics for 'ovn-northd-loop'\n  Total samples: 61\n  Maximum: 127 msec\n  Minimum: 0 msec\n  95th percentile: 47.5 msec\n" +
			"  Short term average: 0.5 msec\n  Long term average: 2.5 msec\nStatistics for 'lflows_igmp'\n  Total samples: 3\n",
	})
	return &Census{Config: c, Databases: []Database{nb, sb}, Log: slog.New(slog.NewTextHandler(log, nil)), Context: t.Context()}
}

// toldInTime is what is told once it is right, or in the end: a daemon that does not answer in the time of a look, as on a busy machine, is told of by the next one.
func toldInTime(t *testing.T, c *Census, right func(string) bool) (got string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		if got = told(t, c); right(got) || time.Now().After(deadline) {
			return got
		}
	}
}

func TestCensus(t *testing.T) {
	const want = `daemon_up/ovn-northd 1
daemon_up/ovsdb-server-nb 1
daemon_up/ovsdb-server-sb 1
database_cells/nb 733
database_cells/sb 7
database_disk_free_bytes/nb some
database_disk_free_bytes/sb some
database_file_bytes/nb 1234
database_file_bytes/sb 99
database_sessions/nb 5
database_sessions/sb 2
northd_active 1
raft_leader/nb 1
raft_leader/sb 0
raft_leader_known/nb 1
raft_leader_known/sb 0
raft_log_entries/nb 38
raft_log_entries/sb 3
raft_member_lag_entries/nb/10.0.0.2 0
raft_member_lag_entries/nb/10.0.0.3 19
raft_member_lag_entries/nb/fd00::3 39
raft_member_silent_seconds/nb/10.0.0.2 0.312
raft_member_silent_seconds/nb/10.0.0.3 61
raft_servers/nb 4
raft_servers/sb 0
raft_term/nb 7
raft_term/sb 9
raft_uncommitted_entries/nb 2
raft_uncommitted_entries/sb 0
task_runs_total/ovn-northd/ovn-northd-loop 61
task_seconds/ovn-northd/average/ovn-northd-loop 0.0025
task_seconds/ovn-northd/max/ovn-northd-loop 0.127
task_seconds/ovn-northd/p95/ovn-northd-loop 0.0475
`
	free := regexp.MustCompile(`(disk_free_bytes/..) [1-9].*`)
	some := func(text string) string { return free.ReplaceAllString(text, "$1 some") }
	if got := some(toldInTime(t, census(t, t.Output()), func(text string) bool { return some(text) == want })); got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
}

// A member that came with an empty disk is beside its former self for a while: the one that was heard last is told, in whatever order they are.
func TestCensusOfAMemberBesideItsFormerSelf(t *testing.T) {
	former, never := "    7b7b (7b7b at tcp:10.0.0.3:6643) next_index=40 match_index=20 last msg 61000 ms ago\n", "    8c8c (8c8c at tcp:10.0.0.3:6643) next_index=40 match_index=0\n"
	come := strings.TrimSuffix(never, "\n") + " last msg 12 ms ago\n"
	for name, want := range map[string]struct{ servers, lag, silent string }{
		"the new one was heard":                {former + come, "39", "0.012"},
		"and is told first":                    {come + former, "39", "0.012"},
		"the new one was not heard yet":        {former + never, "19", "61"},
		"it is told first":                     {never + former, "19", "61"},
		"neither was heard by this new leader": {never + strings.Replace(former, " last msg 61000 ms ago", "", 1), "19", ""},
	} {
		t.Run(name, func(t *testing.T) {
			leads := census(t, t.Output())
			leads.Databases = leads.Databases[:1]
			if err := os.Remove(leads.Databases[0].Control); err != nil {
				t.Fatal(err)
			}
			answering(t, leads.Databases[0].Control, map[string]string{"cluster/status": strings.Replace(leaderStatus, former, want.servers, 1), "memory/show": "cells:733"})
			silent := ""
			if want.silent != "" {
				silent = "raft_member_silent_seconds/nb/10.0.0.3 " + want.silent + "\n"
			}
			right := func(got string) bool {
				return strings.Contains(got, "raft_servers/nb 5\n") && strings.Contains(got, "raft_member_lag_entries/nb/10.0.0.3 "+want.lag+"\n") &&
					strings.Contains(got, "raft_member_silent_seconds/nb/10.0.0.3 ") == (want.silent != "") && strings.Contains(got, silent) && strings.Contains(got, "raft_leader/nb 1\n")
			}
			if got := toldInTime(t, leads, right); !right(got) {
				t.Errorf("told\n%s", got)
			}
		})
	}
}

// TestCensusOfOneThatHasGivenUp: of a server that serves its database no more, its file and the room for it are told.
func TestCensusOfOneThatHasGivenUp(t *testing.T) {
	c := census(t, t.Output())
	nb := c.Config.named(ProbeNB)
	if err := os.Remove(nb.Control); err != nil {
		t.Fatal(err)
	}
	answering(t, nb.Control, map[string]string{"": unknownCluster})
	right := func(got string) bool {
		return strings.Contains(got, "daemon_up/ovsdb-server-nb 0\n") && strings.Contains(got, "database_file_bytes/nb 1234\n") && strings.Contains(got, "database_disk_free_bytes/nb ")
	}
	if got := toldInTime(t, c, right); !right(got) {
		t.Errorf("told\n%s", got)
	}
}

// TestCensusOfNothing: no daemon, no series, and nothing in the log; one that has died in its socket, a series that says so and one line in the log.
func TestCensusOfNothing(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	c := &Census{Config: Config{RunDir: dir}, Log: slog.New(slog.NewTextHandler(&log, nil)), Context: t.Context()}
	if got := told(t, c); got != "\n" || log.Len() != 0 {
		t.Errorf("told %q, log %q", got, log.String())
	}
	if err := os.WriteFile(filepath.Join(dir, "ovn-northd.ctl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := told(t, c); got != "daemon_up/ovn-northd 0\n" {
			t.Errorf("told %q", got)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("the log has %d lines:\n%s", n, log.String())
	}
}

// TestCensusOfOneThatHangs: what the others say is told at once, and of it, as soon as that is known, that it does not answer.
func TestCensusOfOneThatHangs(t *testing.T) {
	c := census(t, t.Output())
	northd := c.Config.socket(ProbeNorthd)
	if err := os.Remove(northd); err != nil {
		t.Fatal(err)
	}
	hung, err := net.Listen("unix", northd) // it accepts nothing; the kernel takes what is written
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hung.Close() })
	start := time.Now()
	got := told(t, c)
	if took := time.Since(start); took >= scrapeTimeout || !strings.Contains(got, "daemon_up/ovsdb-server-nb 1\n") || strings.Contains(got, "northd") {
		t.Errorf("after %s it told\n%s", took, got)
	}
	for deadline := start.Add(time.Minute); !strings.Contains(got, "northd"); got = told(t, c) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing was told of it:\n%s", got)
		}
	}
	if !strings.Contains(got, "daemon_up/ovn-northd 0\n") || strings.Contains(got, "northd_active") {
		t.Errorf("told\n%s", got)
	}
}

func TestServeMetrics(t *testing.T) {
	probe, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	if err := Serve(t.Context(), address, census(t, t.Output())); err == nil || !strings.Contains(err.Error(), "--metrics-address") {
		t.Errorf("with a port that another has: %v", err)
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var log bytes.Buffer
	twice := census(t, &log)
	twice.Databases = append(twice.Databases, twice.Databases[1]) // what of the metrics cannot be told does not take the others with it, and is not kept quiet
	go func() { done <- Serve(ctx, address, twice) }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + address + "/metrics")
		if err == nil {
			text, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err == nil && strings.Contains(string(text), `godwit_ovn_raft_leader{database="nb"} 1`) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v: %s", err, text)
			}
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "godwit_ovn_raft_leader") {
		t.Errorf("the log says %q", log.String())
	}
}

// Members are told by their hosts, however raft reaches them.
func TestMember(t *testing.T) {
	hosts := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::3")}
	for name, d := range map[string]Database{
		"tcp":     {Kind: ProbeSB, Protocol: "tcp", Port: 6642, Hosts: hosts},
		"ssl":     {Kind: ProbeNB, Protocol: "ssl", Port: 6641, Hosts: hosts},
		"sockets": {Kind: ProbeSB, Protocol: "ssl", Port: 6642, Hosts: hosts, Peers: "/run/peers"},
	} {
		for _, h := range hosts {
			if got := d.member(d.raftAddress(h)); got != h.String() {
				t.Errorf("%s: the member at %s is told as %q, want %q", name, d.raftAddress(h), got, h)
			}
		}
	}
	for address, want := range map[string]string{"ssl:10.0.0.9:6643": "10.0.0.9", "unix:/run/other.sock": "unix:/run/other.sock"} {
		if got := (Database{Kind: ProbeNB, Protocol: "ssl", Port: 6641, Hosts: hosts}).member(address); got != want {
			t.Errorf("the member at %s, which is not one of the hosts, is told as %q, want %q", address, got, want)
		}
	}
}
