package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"
)

// Who connects to what gets to a backend, which sees who it should.
func TestBalance(t *testing.T) {
	w := newWorld(t, 3)
	four, six := w.servePods(3, 8080)
	onNode, onOther := netip.MustParseAddrPort(nodeIP+":6443"), netip.MustParseAddrPort(otherIP+":6443")
	w.serve(w.node, "tcp", onNode.String())
	w.serve(w.outside, "tcp", onOther.String())
	w.table.Set(tcp(clusterIP, 80), all(four...))
	w.table.Set(tcp(clusterIP6, 80), all(six...))
	w.table.Set(tcp("0.0.0.0", 30080), all(four...))
	w.table.Set(tcp("::", 30080), all(six...))
	scoped := all(four...)
	scoped.Outside = &Choice{Backends: four[:1], Silent: true}
	w.table.Set(tcp(balancedIP, 80), scoped)
	w.table.Set(tcp("0.0.0.0", 30081), scoped)
	w.table.Set(tcp(clusterIP, 6443), all(onNode))
	w.table.Set(tcp(clusterIP, 6444), all(onOther))
	w.table.Set(tcp("0.0.0.0", 30443), all(onNode))
	w.table.Set(tcp("0.0.0.0", 30444), all(onOther))
	w.write()
	for _, c := range []struct {
		name     string
		from     Host
		to, seen string
		backends int
	}{
		{"host to a cluster address", w.node, clusterIP + ":80", ownIP, 3},
		{"host to a cluster address, IPv6", w.node, "[" + clusterIP6 + "]:80", ownIP6, 3},
		{"host to its own node port", w.node, nodeIP + ":30080", ownIP, 3},
		{"host to a backend of its own", w.node, clusterIP + ":6443", nodeIP, 1},
		{"host to a backend of another", w.node, clusterIP + ":6444", nodeIP, 1},
		{"outside to a cluster address", w.outside, clusterIP + ":80", clientsIP, 3},
		{"outside to a node port", w.outside, nodeIP + ":30080", clientsIP, 3},
		{"outside to a node port, IPv6", w.outside, "[" + nodeIP6 + "]:30080", clientsIP6, 3},
		{"outside to a node port whose backend is the node", w.outside, nodeIP + ":30443", outsideIP, 1},
		{"outside to a node port whose backend is another node", w.outside, nodeIP + ":30444", nodeIP, 1},
		{"outside to a scoped node port", w.outside, nodeIP + ":30081", outsideIP, 1},
		{"outside to a scoped load balancer address", w.outside, balancedIP + ":80", outsideIP, 1},
		{"host to a scoped load balancer address", w.node, balancedIP + ":80", ownIP, 3},
		{"pod to a node port", w.pods, nodeIP + ":30080", clientsIP, 3},
		{"pod to a node port, IPv6", w.pods, "[" + nodeIP6 + "]:30080", clientsIP6, 3},
		{"pod to a scoped node port", w.pods, nodeIP + ":30081", clientsIP, 3},
		{"pod to a node port whose backend is the node", w.pods, nodeIP + ":30443", clientPod, 1},
		{"pod to a node port whose backend is another node", w.pods, nodeIP + ":30444", nodeIP, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := map[string]int{}
			for range 40 {
				a, err := w.ask(c.from, "tcp", c.to)
				if err != nil {
					t.Fatal(err)
				}
				if a.seen != c.seen {
					t.Fatalf("%s saw %s, want %s", a.backend, a.seen, c.seen)
				}
				got[a.backend]++
			}
			if len(got) != c.backends {
				t.Errorf("backends %v, want %d of them", got, c.backends)
			}
		})
	}
}

// The node's ports are none of loopback, nor of its addresses on the join network, which is the pods'.
func TestNodePortsAreNotEverywhere(t *testing.T) {
	w := newWorld(t, 1)
	four, six := w.servePods(1, 8080)
	w.table.Set(tcp("0.0.0.0", 30080), all(four...))
	w.table.Set(tcp("::", 30080), all(six...))
	w.write()
	for _, to := range []string{"127.0.0.1:30080", "[::1]:30080", ownIP + ":30080", clientsIP + ":30080", "[" + clientsIP6 + "]:30080"} {
		if a, err := w.ask(w.node, "tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, %v, want it refused", to, a, err)
		}
	}
	if a, err := w.ask(w.pods, "tcp", ownIP+":30080"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("pod to %s: %v, %v, want it refused", ownIP, a, err)
	}
}

// Without backends connections are refused at once; of a scope that has none where there are some elsewhere, nothing is heard.
func TestBalanceWithoutBackends(t *testing.T) {
	w := newWorld(t, 1)
	four, _ := w.servePods(1, 8080)
	silent := all(four...)
	silent.Outside = &Choice{Silent: true}
	w.table.Set(tcp(balancedIP, 80), silent)
	w.table.Set(tcp("0.0.0.0", 30081), silent)
	w.table.Set(tcp(clusterIP, 81), Balance{All: Choice{Silent: true}})
	udp := Frontend{Addr: netip.MustParseAddr(clusterIP), Protocol: UDP, Port: 53}
	for _, f := range []Frontend{tcp(clusterIP, 80), tcp(clusterIP6, 80), tcp("0.0.0.0", 30080), tcp("::", 30080), udp} {
		w.table.Set(f, Balance{})
	}
	w.write()
	type attempt struct {
		from Host
		to   string
	}
	for name, c := range map[string]attempt{
		"host": {w.node, clusterIP + ":80"}, "host IPv6": {w.node, "[" + clusterIP6 + "]:80"}, "host to node port": {w.node, nodeIP + ":30080"},
		"outside": {w.outside, clusterIP + ":80"}, "outside to node port": {w.outside, nodeIP + ":30080"}, "outside to node port, IPv6": {w.outside, "[" + nodeIP6 + "]:30080"},
		"pod to node port": {w.pods, nodeIP + ":30080"},
	} {
		if a, err := w.ask(c.from, "tcp", c.to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, %v, want it refused", name, a, err)
		}
	}
	for name, from := range map[string]Host{"host": w.node, "outside": w.outside} {
		// The kernel tells its own processes EPERM as well.
		if _, err := w.ask(from, "udp", clusterIP+":53"); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) {
			t.Errorf("%s, a datagram: %v, want it refused", name, err)
		}
	}
	for name, c := range map[string]attempt{
		"outside to a load balancer address": {w.outside, balancedIP + ":80"}, "outside to a node port": {w.outside, nodeIP + ":30081"}, "host to a scope": {w.node, clusterIP + ":81"},
	} {
		if err := w.isSilent(c.from, "tcp", c.to); err != nil {
			t.Errorf("%s: %v, want nothing", name, err)
		}
	}
	if a, err := w.ask(w.node, "tcp", balancedIP+":80"); err != nil || a.seen != ownIP {
		t.Errorf("the host to a load balancer address: %v, %v", a, err)
	}
	w.table.Set(tcp(clusterIP, 80), all(four...))
	w.write()
	if a, err := w.ask(w.node, "tcp", clusterIP+":80"); err != nil || a.backend != four[0].String() {
		t.Errorf("with a backend again: %v, %v", a, err)
	}
}

func timedOut(err error) bool {
	var to net.Error
	return errors.As(err, &to) && to.Timeout()
}

// Only those may connect who are in the ranges.
func TestBalanceSources(t *testing.T) {
	w := newWorld(t, 1)
	four, _ := w.servePods(1, 8080)
	for port, sources := range map[uint16][]string{80: {outsideIP + "/32", "10.0.0.0/8"}, 81: {"10.0.0.0/8", otherIP + "/31"}, 82: {"0.0.0.0/0"}, 83: {"fd00::/8"}, 84: {}} {
		b := all(four...)
		b.Sources = []netip.Prefix{}
		for _, s := range sources {
			b.Sources = append(b.Sources, netip.MustParsePrefix(s).Masked())
		}
		w.table.Set(tcp(balancedIP, port), b)
	}
	w.write()
	for port, want := range map[int]bool{80: true, 81: true, 82: true, 83: false, 84: false} {
		at := fmt.Sprintf("%s:%d", balancedIP, port)
		var err error
		if want {
			_, err = w.ask(w.outside, "tcp", at)
		} else {
			err = w.isSilent(w.outside, "tcp", at)
		}
		if err != nil {
			t.Errorf("port %d: %v, want admitted %t", port, err, want)
		}
	}
	only := all(four...)
	only.Sources = []netip.Prefix{netip.MustParsePrefix(otherIP + "/32")}
	w.table.Set(tcp(balancedIP, 80), only)
	w.write()
	if err := w.isSilent(w.outside, "tcp", balancedIP+":80"); err != nil {
		t.Errorf("after the range is gone: %v, want nothing", err)
	}
}

// A client goes to its backend again for as long as it is remembered, through changes of the others, and to another when that is gone.
func TestBalanceAffinity(t *testing.T) {
	const remembered = 2 * time.Second
	w := newWorld(t, 6)
	four, six := w.servePods(6, 8080)
	sticky := func(backends []netip.AddrPort, affinity time.Duration) Balance {
		return Balance{All: Choice{Backends: backends}, Affinity: affinity}
	}
	w.table.Set(tcp(clusterIP, 80), sticky(four, time.Hour))
	w.table.Set(tcp(clusterIP6, 80), sticky(six, time.Hour))
	w.table.Set(tcp("0.0.0.0", 30080), sticky(four, time.Hour))
	w.table.Set(tcp(clusterIP, 81), sticky(four, remembered))
	w.write()
	same := func(from Host, to string, times int) string {
		t.Helper()
		got := map[string]bool{}
		for range times {
			a, err := w.ask(from, "tcp", to)
			if err != nil {
				t.Fatal(err)
			}
			got[a.backend] = true
		}
		if len(got) != 1 {
			t.Errorf("%s leads to %v, want one backend", to, got)
		}
		for b := range got {
			return b
		}
		return ""
	}
	same(w.node, "["+clusterIP6+"]:80", 10)
	same(w.outside, nodeIP+":30080", 10)
	if left := affinities(t, w, tcp("0.0.0.0", 30080)); left != 1 {
		t.Errorf("%d clients of the node port are remembered, want 1", left)
	}
	first := netip.MustParseAddrPort(same(w.node, clusterIP+":80", 10))
	others := slices.DeleteFunc(slices.Clone(four), func(a netip.AddrPort) bool { return a == first })
	w.table.Set(tcp(clusterIP, 80), sticky(append(slices.Clone(others[2:]), first), time.Hour))
	w.write()
	if got := same(w.node, clusterIP+":80", 10); got != first.String() {
		t.Errorf("after others are gone it leads to %s, want %s as before", got, first)
	}
	w.table.forget() // as an agent that starts again
	w.write()
	if got := same(w.node, clusterIP+":80", 10); got != first.String() {
		t.Errorf("after the table is replaced it leads to %s, want %s as before", got, first)
	}
	w.table.Set(tcp(clusterIP, 80), sticky(others, time.Hour))
	w.write()
	if got := same(w.node, clusterIP+":80", 10); got == first.String() {
		t.Errorf("leads to %s, which is gone", got)
	}
	w.table.Set(tcp(clusterIP, 80), all(four...))
	w.write()
	got := map[string]bool{}
	for range 40 {
		a, err := w.ask(w.node, "tcp", clusterIP+":80")
		if err != nil {
			t.Fatal(err)
		}
		got[a.backend] = true
	}
	if len(got) < 4 {
		t.Errorf("without affinity 40 connections led to %v", got)
	}
	w.in(w.node, func() error {
		return w.table.flushAffinity(t.Context(), map[Frontend]struct{}{tcp("0.0.0.0", 30080): {}})
	})
	if left := affinities(t, w, tcp("0.0.0.0", 30080)); left != 0 {
		t.Errorf("%d clients of the node port are remembered after all were forgotten", left)
	}
	short, asked := same(w.node, clusterIP+":81", 5), time.Now()
	for counted := 0; counted < 4; { // every connection counts anew
		time.Sleep(remembered / 2)
		before := time.Now()
		again := same(w.node, clusterIP+":81", 1)
		switch late := time.Since(asked) >= remembered; { // on a busy machine: it begins anew
		case late:
			short, counted = again, 0
		case again != short:
			t.Fatalf("within the time it leads to %s, want %s", again, short)
		default:
			counted++
		}
		asked = before
	}
	for deadline := time.Now().Add(time.Minute); affinities(t, w, tcp(clusterIP, 81)) != 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("clients are remembered after their time")
		}
	}
}

// affinities counts the clients that are remembered for a frontend.
func affinities(t *testing.T, w *world, f Frontend) (count int) {
	t.Helper()
	w.in(w.node, func() error {
		have, err := w.table.nft.ListElements(t.Context(), "map", f.affinityMap("", 8080))
		count = len(have)
		return err
	})
	return count
}
