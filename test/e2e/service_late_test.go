package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab/reach"
)

// What goes on after a pause that connection tracking does not wait for, and before its sweep, is tracked anew, and nothing else suffers: the userspace datapath of some versions of
// Open vSwitch dies of it, with every connection of the node, unless the agent keeps OVN from translating what is not a Service's (ovs.Client.AvoidZeroSNAT).
func TestServiceLateDatagram(t *testing.T) {
	const forgotten = 31 * time.Second // Open vSwitch keeps UDP that was answered for 30 s, and sweeps every 20
	g := newGoods(t)
	svc := echoService(g.ns, "late", podRole, 7)
	open(t, svc, nil)
	g.sells(t, svc, backend(g.pod))
	before := switchOf(t, g.pod.Node)

	type flow struct {
		what string
		conn net.Conn
	}
	var flows []flow
	for _, p := range []reach.Pod{g.near, g.far} {
		for _, to := range append(endpoints(g.pod.IPs, 7), endpoints(parsed(svc.Spec.ClusterIPs), servicePort)...) {
			conn, err := podPlace(t, p).Dial(t.Context(), "udp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			flows = append(flows, flow{what: fmt.Sprintf("from %s to %s", p.Name, to), conn: conn})
		}
	}
	say := func(when string) {
		for _, f := range flows {
			if err := answered(f.conn); err != nil {
				t.Errorf("%s, %s: %v", f.what, when, err)
			}
		}
	}
	say("at first")
	time.Sleep(forgotten)
	say("after a pause")
	if after := switchOf(t, g.pod.Node); after != before {
		t.Errorf("ovs-vswitchd of %s was process %s and is %s: it has been started again meanwhile", g.pod.Node, before, after)
	}
}

func endpoints(ips []netip.Addr, port uint16) (out []netip.AddrPort) {
	for _, ip := range ips {
		out = append(out, netip.AddrPortFrom(ip, port))
	}
	return out
}

// answered asks an echoserver by UDP, three times if need be.
func answered(conn net.Conn) (err error) {
	for range 3 {
		if err = conn.SetDeadline(time.Now().Add(patience(time.Second))); err != nil {
			return err
		}
		if _, err = io.WriteString(conn, "are you there?"); err != nil {
			return err
		}
		if _, err = conn.Read(make([]byte, 512)); err == nil {
			return nil
		}
	}
	return err
}

// switchOf is the process that a node's ovs-vswitchd is: another one when it was started again.
func switchOf(t *testing.T, node string) string {
	t.Helper()
	pid, err := cluster.Exec(t.Context(), node, "pidof", "ovs-vswitchd")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(pid)
}
