package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/sbdb"
	"github.com/godwit-cni/godwit/pkg/topology"
	"github.com/godwit-cni/godwit/pkg/wire"
	"github.com/godwit-cni/godwit/test/lab/ovntest"
)

const (
	testVMI = "vm.example"
	vmiUID  = "00000000-0000-4000-8000-00000000beef"
)

// move is a VM's port on real OVN, and two nodes between which the test moves it.
type move struct {
	t     *testing.T
	nodes []*testNode
	nb    *northbound
	sb    client.Client
	lsp   *nbdb.LogicalSwitchPort
	peer  *testPod
	n     int
}

func newMove(t *testing.T) *move {
	useProgramsOfPackages(t)
	c := ovntest.Central(t)
	m := &move{t: t, nodes: []*testNode{newTestNode(t, c, "one", 1), newTestNode(t, c, "two", 2)}, nb: &northbound{t: t}, peer: newTestPod(t, "peer", 1)}
	m.nodes[1].records = m.nodes[0].records // one API server
	id := identityOf("", 9)
	m.lsp = topology.VM(topology.VMPort{Namespace: "ns", Name: testVMI, Network: ident.DefaultNetwork, Subnet: "pods", MAC: id.MAC, IPs: id.IPs})
	m.lsp.Options = map[string]string{"requested-chassis": "one", "iface-id-ver": vmiUID}
	var p ports
	for i, n := range m.nodes {
		rows := topology.Node(n.Name, joinOf(i+1))
		p.nodes, p.egress = append(p.nodes, rows.Port), append(p.egress, rows.Egress...)
	}
	p.pods = []*nbdb.LogicalSwitchPort{m.peer.lsp("one"), m.lsp}
	m.nb.connect(c)
	if _, err := m.nb.db.MonitorAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.nb.write(p)
	m.connectSB(c)
	for _, n := range m.nodes {
		n.start()
	}
	for _, n := range m.nodes {
		n.waitReady(t)
	}
	attach(t, m.nodes[0], m.peer)
	return m
}

func (m *move) connectSB(c *ovntest.OVNCentral) {
	model, err := sbdb.FullDatabaseModel()
	if err != nil {
		m.t.Fatal(err)
	}
	if m.sb, err = client.NewOVSDBClient(model, client.WithEndpoint(c.SB)); err != nil {
		m.t.Fatal(err)
	}
	if err := m.sb.Connect(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(m.sb.Close)
	if _, err := m.sb.Monitor(m.t.Context(), m.sb.NewMonitor(client.WithTable(&sbdb.PortBinding{}), client.WithTable(&sbdb.Chassis{}))); err != nil {
		m.t.Fatal(err)
	}
}

// ask writes which chassis may claim the VM's port; two of them with an activation strategy.
func (m *move) ask(chassis string, two ...string) {
	m.t.Helper()
	row := &nbdb.LogicalSwitchPort{Name: m.lsp.Name}
	if err := m.nb.db.Get(m.t.Context(), row); err != nil {
		m.t.Fatal(err)
	}
	row.Options = map[string]string{"requested-chassis": chassis, "iface-id-ver": vmiUID}
	if len(two) > 0 {
		row.Options["requested-chassis"], row.Options["activation-strategy"] = chassis+","+two[0], "rarp"
	}
	ops, err := m.nb.db.Where(row).Update(row, &row.Options)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.nb.db.Transact(m.t.Context(), ops...); err != nil {
		m.t.Fatal(err)
	}
}

// bound waits until the port is claimed by main and by the others, and is activated, or not, there.
func (m *move) bound(main, activated string, others ...string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("port on %s and %v, activated on %q", main, others, activated), func() error {
		var chassis []sbdb.Chassis
		var rows []sbdb.PortBinding
		if err := errors.Join(m.sb.List(m.t.Context(), &chassis),
			m.sb.WhereCache(func(b *sbdb.PortBinding) bool { return b.LogicalPort == m.lsp.Name }).List(m.t.Context(), &rows)); err != nil {
			return err
		}
		name := map[string]string{}
		for _, c := range chassis {
			name[c.UUID] = c.Name
		}
		if len(rows) != 1 || rows[0].Chassis == nil {
			return fmt.Errorf("it has no chassis: %+v", rows)
		}
		var additional []string
		for _, c := range rows[0].AdditionalChassis {
			additional = append(additional, name[c])
		}
		if got := rows[0].Options["additional-chassis-activated"]; name[*rows[0].Chassis] != main || !slices.Equal(additional, others) || got != activated {
			return fmt.Errorf("it is on %s and %v, activated on %q", name[*rows[0].Chassis], additional, got)
		}
		return nil
	})
}

// launcher is a new launcher pod of the VM, allowed to attach on a node.
func (m *move) launcher(n *testNode, migration string) *testPod {
	m.n++
	p := newTestPod(m.t, fmt.Sprintf("launcher-%d", m.n), 100+m.n)
	podUID := string(p.pod.UID)
	p.id = identityOf(podUID, 9)
	p.id.VMI, p.id.Attach = &v1alpha1.Instance{Name: testVMI, UID: vmiUID}, &v1alpha1.Attach{Chassis: n.Name, Migration: migration}
	if migration != "" {
		p.id.Attach.Activation = v1alpha1.ActivationRARP
	}
	p.pod.Annotations[v1alpha1.IdentityAnnotation] = p.id.Text()
	launch(p.pod, testVMI, vmiUID)
	return p
}

func (m *move) record(migration string, source, target *testPod) *v1alpha1.PortMigration {
	end := func(p *testPod) v1alpha1.MigrationEnd {
		return v1alpha1.MigrationEnd{Node: p.id.Attach.Chassis, Pod: v1alpha1.ObjectName{Name: p.pod.Name, UID: p.pod.UID}}
	}
	pm := &v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: migration}, Spec: v1alpha1.PortMigrationSpec{
		Migration: v1alpha1.ObjectName{Name: migration, UID: types.UID(migration)}, Source: end(source), Target: end(target),
		Ports: []v1alpha1.MigratedPort{{Network: ident.DefaultNetwork, Name: m.lsp.Name, MAC: target.id.MAC.String()}},
	}}
	m.nodes[0].records.add(pm)
	return pm
}

// says sends a frame out of a pod, as the VM in it does, and returns between which times.
func says(t *testing.T, p *testPod, link string, b []byte) (from, to time.Time) {
	t.Helper()
	if err := p.Do(func() error {
		iface, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		from = time.Now()
		err = frame.Send(iface.Index, b)
		to = time.Now()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return from, to
}

// plain is an ordinary frame of the VM to the peer.
func (m *move) plain(p *testPod) []byte {
	return slices.Concat(m.peer.id.MAC, p.id.MAC, []byte{0x08, 0x00}, make([]byte, 46))
}

// quiet takes the VM off a pod: its kernel answers for it no more.
func quiet(t *testing.T, p *testPod) {
	t.Helper()
	if err := p.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	}); err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T, what string, got *metav1.MicroTime, from, to time.Time) {
	t.Helper()
	if got == nil || got.Time.Before(from.Truncate(time.Microsecond)) || got.After(to.Add(time.Millisecond)) {
		t.Errorf("%s is said to be at %v, it was between %s and %s", what, got, from, to)
	}
}

// reaches dials the peer from the VM's pod.
func (m *move) reaches(p *testPod) error {
	_, err := dial(place{name: p.pod.Name, do: p.Do, ips: p.id.IPs}, m.peer.id.IPs[0].Addr(), 7000)
	return err
}

// TestVMMoves moves a port there, announced by the VM, and back, announced by the agent.
func TestVMMoves(t *testing.T) {
	m := newMove(t)
	stop := serveTCP(t, place{name: "peer", do: m.peer.Do, ips: m.peer.id.IPs}, 7000)
	defer stop()
	first := m.launcher(m.nodes[0], "")
	attach(t, m.nodes[0], first)
	eventually(t, "VM to peer", func() error { return m.reaches(first) })
	var second *testPod
	t.Run("there", func(t *testing.T) { second = m.there(t, first) })
	if second == nil || t.Failed() {
		return
	}
	var third *testPod
	t.Run("back", func(t *testing.T) { third = m.back(t, second) })
	if third == nil || t.Failed() {
		return
	}
	t.Run("started anew on the same node", func(t *testing.T) { m.anew(t, third) })
}

func (m *move) there(t *testing.T, source *testPod) *testPod {
	m.ask("one", "two")
	target := m.launcher(m.nodes[1], "there")
	pm := m.record("there", source, target)
	start := time.Now()
	attach(t, m.nodes[1], target) // returns although OVN keeps the port closed
	installed := time.Now()
	m.bound("one", "", "two")
	if err := m.reaches(target); err == nil {
		t.Error("the target reaches the peer before it was announced")
	}
	watchedLink(t, m.nodes[0])
	lastFrom, lastTo := says(t, source, "eth0", m.plain(source))
	quiet(t, source)
	rarpFrom, rarpTo := says(t, target, "eth0", frame.RARP(net.HardwareAddr(target.id.MAC)))
	m.bound("one", "two", "two")
	eventually(t, "VM on the target to peer", func() error { return m.reaches(target) })
	var got v1alpha1.Observation
	eventually(t, "a report of the announcement", func() error { // an agent that is slow reports the attachment before it
		if got = m.nodes[0].records.reported(t, pm, sideTarget); got.Announced == nil {
			return errors.New("the target's agent has not seen the announcement yet")
		}
		return nil
	})
	within(t, "attachment", got.Attached, start, installed)
	within(t, "announcement", got.Announced, rarpFrom, rarpTo)
	if got.AnnouncedByAgent {
		t.Error("the agent claims the VM's announcement")
	}
	from := m.nodes[0].records.reported(t, pm, sideSource)
	within(t, "last frame", from.LastFrame, lastFrom, lastTo)
	if from.Clock.BootID == "" || from.Clock.BootID != got.Clock.BootID {
		t.Errorf("clocks are of %q and %q, want one machine", from.Clock.BootID, got.Clock.BootID)
	}
	t.Logf("interruption %s", got.Announced.Sub(from.LastFrame.Time))
	m.commit(t, pm, source, target)
	return target
}

// commit ends a migration: the source's DEL leaves the target alone.
func (m *move) commit(t *testing.T, pm *v1alpha1.PortMigration, source, target *testPod) {
	t.Helper()
	on := map[string]*testNode{"one": m.nodes[0], "two": m.nodes[1]}
	m.ask(target.id.Attach.Chassis)
	m.bound(target.id.Attach.Chassis, "")
	m.nodes[0].records.change(pm, func(st *v1alpha1.PortMigrationStatus) { st.Result = v1alpha1.MigrationSucceeded })
	if _, err := on[source.id.Attach.Chassis].call(t, source.request(wire.Del)); err != nil {
		t.Errorf("DEL of the source: %v", err)
	}
	eventually(t, "CHECK of the target", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := wire.NewClient(on[target.id.Attach.Chassis].cfg.CNISocket).Do(ctx, target.request(wire.Check))
		return err
	})
	m.bound(target.id.Attach.Chassis, "")
	for _, n := range m.nodes {
		eventually(t, "end of observation on "+n.Name, func() error {
			n.agent.observer.mu.Lock()
			defer n.agent.observer.mu.Unlock()
			if len(n.agent.observer.watches) > 0 {
				return errors.New("a migration is still watched")
			}
			return nil
		})
	}
}

// watchedLink waits until a node's agent looks at the frames of a migration.
func watchedLink(t *testing.T, n *testNode) {
	t.Helper()
	eventually(t, "observation on "+n.Name, func() error {
		n.agent.observer.mu.Lock()
		defer n.agent.observer.mu.Unlock()
		for _, w := range n.agent.observer.watches {
			if len(w.list()) > 0 {
				return nil
			}
		}
		return errors.New("no link is looked at")
	})
}

// back is to a pod of the bridge binding whose VM does not announce itself.
func (m *move) back(t *testing.T, source *testPod) *testPod {
	m.ask("two", "one")
	target := m.launcher(m.nodes[0], "back")
	pm := m.record("back", source, target)
	attach(t, m.nodes[0], target)
	m.bound("two", "", "one")
	if err := target.Do(func() error { return bindBridge(target) }); err != nil {
		t.Fatal(err)
	}
	if _, err := m.nodes[0].call(t, target.request(wire.Check)); err != nil {
		t.Errorf("CHECK of a launcher that KubeVirt has plumbed: %v", err)
	}
	quiet(t, source)
	ready := time.Now()
	target.pod.Annotations[kubevirtv1.MigrationTargetReadyTimestamp] = ready.UTC().String()
	m.nodes[0].pods.Modify(target.pod.DeepCopy())
	m.bound("two", "one", "one")
	t.Logf("activated %s after the VM was ready", time.Since(ready))
	got := m.nodes[0].records.reported(t, pm, sideTarget)
	within(t, "announcement", got.Announced, ready.Add(announceAfter), time.Now())
	if !got.AnnouncedByAgent {
		t.Error("the agent does not say that it announced the VM")
	}
	m.commit(t, pm, source, target)
	return target
}

// anew attaches a younger launcher before the DEL of the old one, which then removes nothing of it.
func (m *move) anew(t *testing.T, old *testPod) {
	n := m.nodes[0]
	young := m.launcher(n, "")
	attach(t, n, young)
	ports, err := n.agent.state.db.PodPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ports = slices.DeleteFunc(ports, func(p ovs.PortStatus) bool { return string(p.ID) != m.lsp.Name })
	if len(ports) != 1 || ports[0].Owner.Pod != young.request(wire.Add).Pod.String() {
		t.Errorf("the VM's port is that of %+v, want the younger launcher's alone", ports)
	}
	if _, err := n.call(t, old.request(wire.Del)); err != nil {
		t.Errorf("DEL of the old launcher: %v", err)
	}
	if _, err := n.call(t, young.request(wire.Check)); err != nil {
		t.Errorf("CHECK of the younger launcher: %v", err)
	}
	eventually(t, "VM to peer", func() error { return m.reaches(young) })
}

// bindBridge does to the pod's interface what KubeVirt's bridge binding does.
func bindBridge(p *testPod) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.id.IPs[0].Addr().AsSlice(), Mask: net.CIDRMask(p.id.IPs[0].Bits(), 32)}}
	return errors.Join(netlink.AddrDel(link, addr), netlink.LinkSetDown(link), netlink.LinkSetName(link, "eth0-nic"),
		netlink.LinkSetHardwareAddr(link, net.HardwareAddr{2, 1, 2, 3, 4, 5}), netlink.LinkSetUp(link))
}
