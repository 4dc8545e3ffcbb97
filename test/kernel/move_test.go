package kernel

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// vm is a new VM on a node. Its launchers and namespaces go with the test.
func (s *scene) vm(node int, name string) *cluster.VM {
	s.t.Helper()
	v, err := s.Nodes[node].VM(s.t.Context(), types.NamespacedName{Namespace: s.namespace, Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := v.Remove(context.WithoutCancel(s.t.Context())); err != nil {
			s.t.Errorf("remove VM %s: %v", name, err)
		}
	})
	return v
}

// asked waits until the VM's row asks for chassis, with or without an activation strategy, and returns its UUID.
func (s *scene) asked(v *cluster.VM, chassis, strategy string) (uuid string) {
	s.t.Helper()
	s.await("row of "+string(v.Port()), func(ctx context.Context) error {
		out, err := s.NBCtl(ctx, "--if-exists", "get", "logical_switch_port", string(v.Port()), "_uuid", "options:requested-chassis", "options:activation-strategy")
		if err != nil {
			return err
		}
		got := strings.Split(strings.ReplaceAll(strings.TrimSuffix(out, "\n"), `"`, ""), "\n")
		if len(got) != 3 || got[1] != chassis || got[2] != strategy {
			return fmt.Errorf("its UUID, chassis and strategy are %q, want %q and %q", got, chassis, strategy)
		}
		uuid = got[0]
		return nil
	})
	return uuid
}

// activated waits until OVN says where the VM's port was activated; empty is nowhere.
func (s *scene) activated(v *cluster.VM, chassis string) {
	s.t.Helper()
	s.await("activation of "+string(v.Port()), func(ctx context.Context) error {
		out, err := s.SBCtl(ctx, "--bare", "--columns=options", "find", "port_binding", fmt.Sprintf("logical_port=%q", v.Port()))
		if err != nil {
			return err
		}
		got := ""
		for _, o := range strings.Fields(out) {
			if v, ok := strings.CutPrefix(o, "additional-chassis-activated="); ok {
				got = v
			}
		}
		if got != chassis {
			return fmt.Errorf("it is activated on %q, want %q", got, chassis)
		}
		return nil
	})
}

// TestKernelMove moves a VM there and back under traffic, both ways and in both families: the same row, nothing broken.
func TestKernelMove(t *testing.T) {
	s := newScene(t, "move")
	peer := s.pod(2, "peer")
	v := s.vm(0, "vm")
	uuid := s.asked(v, "node1", "")
	fromPeer, fromVM := s.traffic(peer.Netns), s.traffic(v.Netns)
	// Slow: traffic goes before everything else, and an emulated processor that has too much of it has no time for the migration.
	slow := traffic.Bulk{Connections: 2, Rate: 5_000}
	spec := traffic.Spec{
		Echo:   traffic.Echoing{Connections: 4, Interval: traffic.Duration{Duration: 500 * time.Millisecond}},
		Upload: slow, Download: slow, Silence: traffic.Duration{Duration: 5 * time.Minute},
	}
	toVM, toPeer := spec, spec
	toVM.Peers, toPeer.Peers = v.Live.Addrs(), peer.Addrs()
	runs := map[*traffic.Client]traffic.RunID{fromPeer: s.begin(fromPeer, toVM), fromVM: s.begin(fromVM, toPeer)}
	for _, to := range []int{1, 0} {
		s.move(v, s.Nodes[to])
		if got := s.asked(v, s.Nodes[to].Name, ""); got != uuid {
			t.Errorf("row %s has become %s", uuid, got)
		}
		// The old connections still carry something, and so do new ones.
		s.progress(fromVM, runs[fromPeer])
		s.progress(fromPeer, runs[fromVM])
		s.stop(fromPeer, s.begin(fromPeer, toVM))
		s.stop(fromVM, s.begin(fromVM, toPeer))
	}
	for c, run := range runs {
		if open, _ := s.stop(c, run).Open(); open != 8 {
			t.Errorf("%d connections were opened, want 8", open)
		}
	}
	s.recorded(v, 2)
}

// progress waits until every connection of somebody else's run has carried something more to or from the server that is asked.
func (s *scene) progress(server *traffic.Client, run traffic.RunID) {
	s.t.Helper()
	before := map[uint32]int64{}
	s.await("progress of the connections of run "+run.String(), func(ctx context.Context) error {
		a, err := server.Arrivals(ctx, run)
		if err != nil {
			return err
		}
		first := len(before) == 0
		for _, c := range a.Connections {
			if c.Broken != "" {
				s.t.Fatalf("connection %d (%s) is broken: %s %s", c.Number, c.Kind, c.Broken, c.Error)
			}
			if first {
				before[c.Number] = c.Bytes
			} else if c.Bytes == before[c.Number] {
				return fmt.Errorf("connection %d (%s) stands at %d bytes", c.Number, c.Kind, c.Bytes)
			}
		}
		if first {
			return fmt.Errorf("nothing yet")
		}
		return nil
	})
}

// move migrates the VM, playing KubeVirt and QEMU.
func (s *scene) move(v *cluster.VM, to *cluster.Node) {
	s.t.Helper()
	start := time.Now()
	source, from := v.Live, v.Live.Node.Name
	vmim, target, err := v.Migration(s.t.Context(), to)
	if err != nil {
		s.t.Fatal(err)
	}
	s.asked(v, from+","+to.Name, "rarp")
	s.activated(v, "")
	if err := v.Arrive(s.t.Context(), target, "tool", "rarp", "eth0"); err != nil {
		s.t.Fatal(err)
	}
	s.activated(v, to.Name)
	s.ended(v, vmim, source)
	s.t.Logf("from %s to %s in %s", from, to.Name, time.Since(start).Round(time.Millisecond))
}

// ended ends a migration, and detaches its source.
func (s *scene) ended(v *cluster.VM, vmim *kubevirtv1.VirtualMachineInstanceMigration, source *cluster.Pod) {
	s.t.Helper()
	if err := v.End(s.t.Context(), vmim, source); err != nil {
		s.t.Fatal(err)
	}
	s.asked(v, v.Live.Node.Name, "")
	if err := source.Remove(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// recorded waits until as many migrations of the VM are on record as successful, with what either agent saw.
func (s *scene) recorded(v *cluster.VM, n int) {
	s.t.Helper()
	s.await("records of "+v.Name.String(), func(ctx context.Context) error {
		var list v1alpha1.PortMigrationList
		if err := s.API.List(ctx, &list, client.InNamespace(v.Name.Namespace)); err != nil {
			return err
		}
		good := 0
		for _, pm := range list.Items {
			st := pm.Status
			if st.Result == v1alpha1.MigrationSucceeded && st.Target != nil && st.Target.Announced != nil && !st.Target.AnnouncedByAgent {
				good++
			}
		}
		if good != n {
			return fmt.Errorf("%d of %d PortMigrations are successful and have the VM's announcement, want %d: %+v", good, len(list.Items), n, list.Items)
		}
		return nil
	})
}
