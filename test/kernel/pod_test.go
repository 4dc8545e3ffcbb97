package kernel

import (
	"encoding/json"
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
	before := s.tunnelled(s.Nodes[0])
	run := s.begin(client, traffic.Spec{
		Peers: append(addresses(two), addresses(third)...), Probe: traffic.Probing{Interval: traffic.Duration{Duration: 20 * time.Millisecond}},
		Echo: traffic.Echoing{Connections: 4}, Upload: traffic.Bulk{Connections: 4}, Download: traffic.Bulk{Connections: 4},
	})
	time.Sleep(2 * time.Second) // of traffic
	r := s.stop(client, run)
	if open, _ := r.Open(); open != 12 {
		t.Errorf("%d connections were opened, want 12", open)
	}
	for _, p := range r.Probes {
		if p.Counts.Received == 0 || p.Counts.Corrupt > 0 || p.Counts.Duplicated > 0 {
			t.Errorf("probes to %s: %+v, want some to arrive, none changed and none twice", p.Peer, p.Counts)
		}
	}
	// Uploads and downloads of a quarter of a megabyte a second cross; probes alone are a hundredth of that.
	after := s.tunnelled(s.Nodes[0])
	if sent, got := after.tx-before.tx, after.rx-before.rx; sent < 100_000 || got < 100_000 {
		t.Errorf("the kernel's tunnel device of node1 sent %d bytes and received %d, want 100,000 and more of both", sent, got)
	}
}

type counters struct{ rx, tx int }

// tunnelled are the bytes that the kernel's Geneve device of a node has seen.
func (s *scene) tunnelled(n *cluster.Node) counters {
	s.t.Helper()
	out := s.run(n.Name, "ip", "-json", "-statistics", "link", "show", "genev_sys_6081")
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
		s.t.Fatalf("tunnel device of %s: %s: %v", n.Name, out, err)
	}
	return counters{links[0].Stats.RX.Bytes, links[0].Stats.TX.Bytes}
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
	run := s.begin(client, traffic.Spec{Peers: addresses(two), Upload: traffic.Bulk{Connections: 2, Rate: 20 << 20}})
	time.Sleep(2 * time.Second) // of traffic
	var bytes int64
	for _, c := range s.stop(client, run).Connections {
		bytes += c.Bytes
	}
	t.Logf("%d bytes in 2 s", bytes)
	if bytes < 1<<20 {
		t.Errorf("%d bytes arrived, want a megabyte and more", bytes)
	}
}
