package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// TestKernelPods: pods on two nodes and on one reach each other in both families, by Geneve in the kernel between nodes.
func TestKernelPods(t *testing.T) {
	s := newScene(t, "pods")
	one, two, third := s.pod(0, "one"), s.pod(1, "two"), s.pod(0, "third")
	for _, n := range s.Nodes {
		if got := s.vs(n, "get", "bridge", "br-int", "datapath_type"); got != "system" {
			t.Errorf("br-int of %s has datapath %s, want the kernel's", n.Name, got)
		}
	}
	client := s.traffic(one.Netns)
	for _, p := range []*cluster.Pod{two, third} {
		s.traffic(p.Netns)
	}
	before := s.tunnelledSoFar(s.Nodes[0])
	// Until ovs-vswitchd has made a flow it sees every packet, and an emulated one takes 20 to 50 ms for each: with more of them the first of the others are lost.
	often, bulk := traffic.Duration{Duration: 200 * time.Millisecond}, traffic.Bulk{Connections: 4, Rate: 50_000}
	run := s.begin(client, traffic.Spec{
		Peers: append(two.Addrs(), third.Addrs()...), Probe: traffic.Probing{Interval: often},
		Echo: traffic.Echoing{Connections: 4, Interval: often}, Upload: bulk, Download: bulk,
	})
	s.awaitTunnelled(s.Nodes[0], before, counters{rx: 300_000, tx: 300_000}) // some seconds' bulk; probes alone would take minutes
	r := s.stop(client, run)
	if open, _ := r.Open(); open != 12 {
		t.Errorf("%d connections were opened, want 12", open)
	}
	for _, p := range r.Probes {
		if p.Counts.Received == 0 || p.Counts.Corrupt > 0 || p.Counts.Duplicated > 0 {
			t.Errorf("probes to %s: %+v, want some to arrive, none changed and none twice", p.Peer, p.Counts)
		}
	}
}

type counters struct{ rx, tx int }

// tunnelled are the bytes that the kernel's Geneve device of a node has seen.
func tunnelled(ctx context.Context, n *cluster.Node) (counters, error) {
	out, err := n.In(ctx, "ip", "-json", "-statistics", "link", "show", "genev_sys_6081")
	if err != nil {
		return counters{}, err
	}
	var links []struct {
		Stats struct {
			RX struct {
				Bytes int `json:"bytes"`
			} `json:"rx"`
			TX struct {
				Bytes int `json:"bytes"`
			} `json:"tx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		return counters{}, errors.Join(fmt.Errorf("tunnel device of %s is %s, want one with counters", n.Name, out), err)
	}
	return counters{links[0].Stats.RX.Bytes, links[0].Stats.TX.Bytes}, nil
}

func (s *scene) tunnelledSoFar(n *cluster.Node) counters {
	s.t.Helper()
	c, err := tunnelled(s.t.Context(), n)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// awaitTunnelled waits until the kernel's Geneve device has seen more bytes than before.
func (s *scene) awaitTunnelled(n *cluster.Node, before, more counters) {
	s.t.Helper()
	s.await("traffic through tunnels of "+n.Name, func(ctx context.Context) error {
		now, err := tunnelled(ctx, n)
		if err != nil {
			return err
		}
		if got := (counters{rx: now.rx - before.rx, tx: now.tx - before.tx}); got.rx < more.rx || got.tx < more.tx {
			return fmt.Errorf("the kernel's tunnel device has seen %+v bytes, want %+v", got, more)
		}
		return nil
	})
}

// TestKernelOffload: on the kernel's datapath nobody touches the offloads of a pod's link, nor of the node's; large packets cross tunnels whole.
func TestKernelOffload(t *testing.T) {
	s := newScene(t, "offload")
	one, two := s.pod(0, "one"), s.pod(1, "two")
	for _, l := range []struct{ netns, name string }{
		{one.Netns, "eth0"}, {s.Nodes[0].Name, one.HostLink}, {s.Nodes[0].Name, "ovn0"}, {s.Nodes[0].Name, "eth1"},
	} {
		features := s.run(l.netns, "ethtool", "-k", l.name)
		for _, f := range []string{"tx-checksumming", "tcp-segmentation-offload"} {
			if !strings.Contains(features, f+": on") {
				t.Errorf("link %s in %s does not have %s:\n%s", l.name, l.netns, f, features)
			}
		}
	}
	s.traffic(two.Netns)
	client := s.traffic(one.Netns)
	before := s.tunnelledSoFar(s.Nodes[0])
	run := s.begin(client, traffic.Spec{Peers: two.Addrs(), Upload: traffic.Bulk{Connections: 2, Rate: 20 << 20}})
	s.awaitTunnelled(s.Nodes[0], before, counters{tx: 10 << 20})
	s.stop(client, run)
}
