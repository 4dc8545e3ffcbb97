package ovnpod

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/godwit-cni/godwit/pkg/raft"
)

func TestDecide(t *testing.T) {
	here := "tcp:10.0.0.1:6643"
	member := func(change func(*found)) found {
		f := found{file: true, server: "abcd1234", cluster: "c1", address: here, want: here, record: Record{Cluster: "c1"}}
		change(&f)
		return f
	}
	for name, c := range map[string]struct {
		f    found
		want step
	}{
		"the first pod of a new cluster":                {found{want: here}, stepCreate},
		"another pod of a new cluster":                  {found{want: here, ordinal: 1}, stepWait},
		"an empty disk where there is a cluster":        {found{want: here, ordinal: 1, record: Record{Cluster: "c1"}}, stepJoin},
		"the first pod with an empty disk never splits": {found{want: here, record: Record{Cluster: "c1"}}, stepJoin},
		"a member starts again":                         {member(func(*found) {}), stepKeep},
		"a copy of a cluster that nobody remembers":     {member(func(f *found) { f.record = Record{} }), stepKeep},
		"the first pod's, of another address":           {member(func(f *found) { f.want, f.record = "tcp:10.0.0.9:6643", Record{} }), stepMove},
		"another pod's, of another address":             {member(func(f *found) { f.want, f.ordinal, f.record = "tcp:10.0.0.9:6643", 1, Record{} }), stepWait},
		"the API server cannot be asked":                {member(func(f *found) { f.record, f.unasked = Record{}, true }), stepKeep},
		"nor where the address is another":              {member(func(f *found) { f.want, f.record, f.unasked = "tcp:10.0.0.9:6643", Record{}, true }), stepKeep},
		"it lacks what it could not write":              {member(func(f *found) { f.gap, f.others = "record 7 skips", true }), stepRejoin},
		"it lacks that, and nobody else can have it":    {member(func(f *found) { f.gap = "record 7 skips" }), stepKeep},
		"it lacks that, and nobody can be asked":        {member(func(f *found) { f.gap, f.others, f.record = "record 7 skips", true, Record{} }), stepKeep},
		"it cannot be read":                             {found{file: true, broken: "unexpected file format", want: here, record: Record{Cluster: "c1"}}, stepRejoin},
		"it was removed meanwhile":                      {member(func(f *found) { f.record.Removed = []string{"abcd@" + here} }), stepRejoin},
		"another of this node was removed":              {member(func(f *found) { f.record.Removed = []string{"ffff@" + here} }), stepKeep},
		"the node has another address":                  {member(func(f *found) { f.want = "tcp:10.0.0.9:6643" }), stepRejoin},
		"the cluster was made anew":                     {member(func(f *found) { f.record.Cluster = "c2" }), stepRejoin},
		"the first pod goes to TLS":                     {member(func(f *found) { f.want = "ssl:10.0.0.1:6643" }), stepMove},
		"the first pod goes to TLS and another address": {member(func(f *found) { f.want = "ssl:10.0.0.9:6643" }), stepMove},
		"another pod goes to TLS":                       {member(func(f *found) { f.want, f.ordinal = "unix:/run/ovn/sb.sock", 1 }), stepWait},
		"another pod, and the first has gone":           {member(func(f *found) { f.want, f.ordinal, f.record.Cluster = "ssl:10.0.0.1:6643", 1, "c2" }), stepRejoin},
		"to TLS, and the API server cannot be asked":    {member(func(f *found) { f.want, f.unasked, f.record = "ssl:10.0.0.1:6643", true, Record{} }), stepWait},
	} {
		if got, why := decide(c.f); got != c.want || got != stepKeep && why == "" {
			t.Errorf("%s: %s (%s), want %s", name, got, why, c.want)
		}
	}
}

const leaderStatus = `abcd
Name: OVN_Northbound
Cluster ID: cd66 (cd66955e-3753-4b01-8c70-ec84edfe55c8)
Server ID: abcd (abcd1111-30d1-4882-9c55-bbb388e451dd)
Address: tcp:10.0.0.1:6643
Status: cluster member
Role: leader
Term: 7
Leader: self
Vote: self

Election timer: 2000
Log: [2, 40]
Entries not yet committed: 2
Entries not yet applied: 0
Connections: ->0000 <-1f2e ->1f2e
Disconnections: 3
Servers:
    abcd (abcd at tcp:10.0.0.1:6643) (self) next_index=30 match_index=39
    1f2e (1f2e at tcp:10.0.0.2:6643) next_index=40 match_index=39 last msg 312 ms ago
    9a9a (9a9a at tcp:[fd00::3]:6643) next_index=40 match_index=0
    7b7b (7b7b at tcp:10.0.0.3:6643) next_index=40 match_index=20 last msg 61000 ms ago
`

func TestParseStatus(t *testing.T) {
	want := Status{
		Cluster: "cd66955e-3753-4b01-8c70-ec84edfe55c8", Server: "abcd1111-30d1-4882-9c55-bbb388e451dd", Member: true, Leader: true, Led: true, Term: 7, First: 2, End: 40, Uncommitted: 2,
		servers: []raft.Server{
			{ID: "abcd", Address: "tcp:10.0.0.1:6643", Self: true, Silent: -1, Match: 39}, {ID: "1f2e", Address: "tcp:10.0.0.2:6643", Silent: 312 * time.Millisecond, Match: 39},
			{ID: "9a9a", Address: "tcp:[fd00::3]:6643", Silent: -1}, {ID: "7b7b", Address: "tcp:10.0.0.3:6643", Silent: 61 * time.Second, Match: 20},
		},
	}
	if diff := cmp.Diff(want, parseStatus(leaderStatus), cmp.AllowUnexported(Status{}), cmpopts.EquateComparable()); diff != "" {
		t.Error(diff)
	}
	secure := parseStatus("Servers:\n    sb-172-30-0-11 (aeee at unix:/run/ovn/sb-172-30-0-11.sock) next_index=21 match_index=20 last msg 521 ms ago\n")
	if len(secure.servers) != 1 || secure.servers[0] != (raft.Server{ID: "aeee", Address: "unix:/run/ovn/sb-172-30-0-11.sock", Silent: 521 * time.Millisecond, Match: 20}) {
		t.Errorf("a member by a unix socket: %+v", secure.servers)
	}
	joining := parseStatus("Name: OVN_Northbound\nStatus: joining cluster\nRole: follower\nLeader: unknown\n")
	if joining.Member || joining.Led || joining.Leader {
		t.Errorf("a member that is joining: %+v", joining)
	}
}

func TestSuperfluous(t *testing.T) {
	s := parseStatus(leaderStatus)
	for _, c := range []struct {
		name     string
		replicas int
		led      time.Duration
		want     string
	}{
		{"as many as there should be", 4, time.Hour, ""},
		{"one too many: the longest silent", 3, time.Minute, "7b7b"},
		{"a leader that has heard nothing of it for longer", 3, time.Hour, "9a9a"},
	} {
		if got, _ := superfluous(s, c.replicas, c.led); got.ID != c.want {
			t.Errorf("%s: %q, want %q", c.name, got.ID, c.want)
		}
	}
	s.servers = s.servers[:2]
	if got, ok := superfluous(s, 1, time.Hour); ok {
		t.Errorf("a member that speaks is removed: %+v", got)
	}
}

func TestDatabase(t *testing.T) {
	c := Defaults()
	c.NBRemote, c.SBRemote = "tcp:10.0.0.1:6641,tcp:10.0.0.2:6641", "ssl:[fd00::1]:6642"
	d, err := c.Database(ProbeNB)
	if err != nil {
		t.Fatal(err)
	}
	two := netip.MustParseAddr("10.0.0.2")
	if local, err := d.local([]netip.Addr{netip.MustParseAddr("fe80::1"), two}); err != nil || local != two {
		t.Errorf("local member %s, %v", local, err)
	}
	if diff := cmp.Diff([]string{"tcp:10.0.0.1:6643"}, d.others(two)); diff != "" {
		t.Error(diff)
	}
	if _, err := d.local([]netip.Addr{netip.MustParseAddr("10.9.9.9")}); err == nil || !strings.Contains(err.Error(), "--nb-remote") {
		t.Errorf("a node that is not listed: %v", err)
	}
	if d, err = c.Database(ProbeSB); err != nil {
		t.Fatal(err)
	}
	if got := d.raftAddress(d.Hosts[0]); got != "unix:/run/ovn/sb-fd00--1.sock" { // its TLS would trust nodes
		t.Errorf("raft address of SB by TLS: %s", got)
	}
	if got := d.listener(); got != "pssl:6642:[::]" {
		t.Errorf("listener %s", got)
	}
	c.NBRemote = "ssl:[fd00::1]:6641"
	if d, err = c.Database(ProbeNB); err != nil {
		t.Fatal(err)
	}
	if got := d.raftAddress(d.Hosts[0]); got != "ssl:[fd00::1]:6643" {
		t.Errorf("raft address of NB by TLS: %s", got)
	}
	for _, bad := range []string{"", "tcp:host:6641", "unix:/run/nb.sock", "tcp:10.0.0.1:6641,tcp:10.0.0.2:6642", "tcp:10.0.0.1:6641,ssl:10.0.0.2:6641"} {
		c.NBRemote = bad
		if _, err := c.Database(ProbeNB); err == nil {
			t.Errorf("--nb-remote %q is taken", bad)
		}
	}
}

// TestRemotesByTLS: the northbound database is for administrators, the southbound one for nodes, and northd comes by the gate.
func TestRemotesByTLS(t *testing.T) {
	c := Defaults()
	c.RunDir = t.TempDir()
	c.NBRemote, c.SBRemote, c.SBGate = "ssl:10.0.0.1:6641", "ssl:10.0.0.1:6642", "ssl:10.0.0.1:6645"
	for kind, want := range map[string][]string{
		ProbeNB: {"--remote=pssl:6641:10.0.0.1", "--private-key=/etc/godwit-ovn/admin/tls.key", "--ca-cert=/etc/godwit-ovn/admin/ca.crt"},
		ProbeSB: {"--remote=db:OVN_Southbound,SB_Global,connections", "--certificate=/etc/godwit-ovn/server/tls.crt", "--ca-cert=/etc/godwit-ovn/server/ca.crt"},
	} {
		d, err := c.Database(kind)
		if err != nil {
			t.Fatal(err)
		}
		got := Member{Config: c, Database: d}.command(d.Hosts[0])
		for _, arg := range want {
			if !slices.Contains(got, arg) {
				t.Errorf("%s: %v lacks %s", kind, got, arg)
			}
		}
	}
	got, err := c.Northd()
	if err != nil || !slices.Contains(got, "--ovnsb-db=ssl:10.0.0.1:6645") || !slices.Contains(got, "--private-key=/etc/godwit-ovn/admin/tls.key") {
		t.Errorf("northd is %v, %v", got, err)
	}
	for gate, want := range map[string]string{
		"": "is not ssl:IP:PORT", "tcp:10.0.0.1:6645": "is not ssl:IP:PORT", "ssl:10.0.0.1:6644": "neither 6642 nor 6644", "ssl:10.0.0.2:6645": "the same addresses",
	} {
		c.SBGate = gate
		if _, err := c.Northd(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--sb-gate %q: %v, want it to say %s", gate, err, want)
		}
	}
	c.NBRemote = "tcp:10.0.0.1:6641"
	if _, err := c.Northd(); err == nil || !strings.Contains(err.Error(), "write ssl: in both") {
		t.Errorf("one by TLS and one without: %v", err)
	}
}

func TestValidateReportsAll(t *testing.T) {
	c := Defaults()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c.StateDir, c.ElectionTimer, c.Nice = "state", time.Hour, 40
	err := c.Validate()
	for _, flag := range []string{"--state-dir", "--election-timer", "--nice"} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%v does not speak of %s", err, flag)
		}
	}
}

func TestNewer(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{{"7.0.1", "7.0.0", true}, {"7.0.0", "7.0.0", false}, {"6.9.9", "7.0.0", false}, {"10.0.0", "9.9.9", true}, {"", "7.0.0", false}} {
		if got := newer(c.a, c.b); got != c.want {
			t.Errorf("newer(%q, %q) = %t", c.a, c.b, got)
		}
	}
}

func TestOrdinal(t *testing.T) {
	c := Defaults()
	for name, want := range map[string]int{"ovn-central-0": 0, "ovn-central-12": 12} {
		c.PodName = name
		if got, err := c.Ordinal(); err != nil || got != want {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "ovn", "ovn-central-x7k2p"} {
		c.PodName = name
		if _, err := c.Ordinal(); err == nil {
			t.Errorf("%q is taken for a StatefulSet's pod", name)
		}
	}
}

func TestHasKey(t *testing.T) {
	for text, want := range map[string]bool{
		`["map",[["hostname","n1"],["system-id","n1"]]]`: true, `["map",[]]`: false, `["map",[["hostname","system-id"]]]`: false, `[]`: false,
	} {
		var column []json.RawMessage
		if err := json.Unmarshal([]byte(text), &column); err != nil {
			t.Fatal(err)
		}
		if got := hasKey(column, "system-id"); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

// A daemon that is still being prepared has no socket: it is alive, and not ready.
func TestProbeBeforeTheDaemon(t *testing.T) {
	c := Defaults()
	c.RunDir, c.SwitchRunDir = t.TempDir(), t.TempDir()
	for _, daemon := range Probes() {
		if err := c.Alive(t.Context(), daemon); err != nil {
			t.Errorf("%s is not alive: %v", daemon, err)
		}
		if err := c.Ready(t.Context(), daemon); err == nil {
			t.Errorf("%s is ready without a daemon", daemon)
		}
	}
}

// A server that has given its database up is ended when there is room for the database, and left alone otherwise.
func TestRevive(t *testing.T) {
	const huge = 1 << 43 // a hole, larger than any disk that this runs on
	for name, tc := range map[string]struct {
		// status is what the server says of its cluster, fails the error that it says instead.
		status, fails string
		size          int64
		// led: it was the leader at the last look.
		led   bool
		want  string
		ended bool
	}{
		"there is room":                       {"", unknownCluster, 1, false, unknownCluster, true},
		"there is none":                       {"", unknownCluster, huge, false, "make room in ", false},
		"there is none, and it led":           {"", unknownCluster, huge, true, unknownCluster, true},
		"it is somebody else":                 {"", "no such command", 1, true, "no such command", false},
		"a follower has failed, and has room": {"Status: failed\nRole: follower\n", "", 1, false, "has given up", true},
		"a follower has failed":               {"Status: failed\nRole: follower\n", "", huge, false, "make room in ", false},
		"a leader has failed":                 {"Status: failed\nRole: leader\n", "", huge, false, "has given up", true},
	} {
		dir := t.TempDir()
		d := Database{Name: "OVN_Northbound", Control: filepath.Join(dir, "c"), File: filepath.Join(dir, "nb.db")}
		if err := os.WriteFile(d.File, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(d.File, tc.size); err != nil {
			t.Fatal(err)
		}
		says := map[string]string{"": tc.fails, "exit": ""}
		if tc.status != "" {
			says["cluster/status"] = tc.status
		}
		answering(t, d.Control, says)
		var log strings.Builder
		w := &Watcher{Database: d, Log: slog.New(slog.NewTextHandler(&log, nil)), last: Status{Leader: tc.led}}
		if err := w.look(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if ended := strings.Contains(log.String(), "ending the server"); ended != tc.ended {
			t.Errorf("%s: ended %t, want %t: %s", name, ended, tc.ended, log.String())
		}
	}
}

// A file is written anew once, when there is room after there was none.
func TestWhole(t *testing.T) {
	dir := t.TempDir()
	d := Database{Name: "OVN_Northbound", Control: filepath.Join(dir, "c"), File: filepath.Join(dir, "nb.db")}
	if err := os.WriteFile(d.File, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	answering(t, d.Control, map[string]string{"cluster/status": "Status: cluster member\nRole: follower\n", "ovsdb-server/compact": ""})
	var log strings.Builder
	w := &Watcher{Database: d, Log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, step := range []struct {
		size    int64
		want    string
		written int
	}{{1, "", 0}, {1 << 43, "make room in ", 0}, {1 << 43, "make room in ", 0}, {1, "", 1}, {1, "", 1}} {
		if err := os.Truncate(d.File, step.size); err != nil {
			t.Fatal(err)
		}
		if err := w.look(t.Context()); fmt.Sprint(err) != "<nil>" && step.want == "" || step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)) {
			t.Errorf("with %d bytes: %v, want %q", step.size, err, step.want)
		}
		if n := strings.Count(log.String(), "writing the database's file anew"); n != step.written {
			t.Errorf("with %d bytes: written anew %d times, want %d", step.size, n, step.written)
		}
	}
}
