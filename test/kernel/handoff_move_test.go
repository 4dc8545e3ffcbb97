package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// openEvery is between two connections that are opened while the VM moves.
	openEvery = 100 * time.Millisecond
	// openedAtLeast of these make their survival mean something.
	openedAtLeast = 5
	// heldFor is for how long a commit waits for the end of a hand-over.
	heldFor = time.Second
	// entriesUsually are in the VM's zone besides, once. With ENTRIES=50000 it moves twice more, with so many.
	entriesUsually = 1000
)

// What is counted under these names.
const (
	throughLoadBalancer = "through a load balancer"
	openedMeanwhile     = "opened meanwhile, through a load balancer"
)

// hairpinVIPs are of a load balancer whose only backend is the VM itself.
var hairpinVIPs = []netip.Addr{netip.MustParseAddr("10.96.0.11"), netip.MustParseAddr("fd00:10:96::11")}

// handingOver is a VM behind rules that admit no connection in its middle, and everybody it talks to.
type handingOver struct {
	*scene
	vm            *cluster.VM
	peer, backend *cluster.Pod
	clients       map[string]*traffic.Client
	// more is traffic besides what begin begins by itself, and kept who is asked for their names and keeps them.
	more []course
	kept []keeping
	// besides are so many entries of the VM's zone that nobody uses.
	besides int
	// pad is on the node where the VM is not at first.
	pad *cluster.Pod
}

func newHandingOver(t *testing.T, namespace string) *handingOver {
	t.Helper()
	s := &handingOver{scene: newScene(t, namespace)}
	s.peer, s.backend = s.pod(2, "peer"), s.pod(2, "backend")
	s.pad = s.pod(1, "pad") // or a port would have the same zone on both nodes, which it has only by chance
	s.vm = s.scene.vm(0, "vm")
	s.guard(s.vm, s.backend)
	s.hairpin()
	s.clients = map[string]*traffic.Client{"vm": s.traffic(s.vm.Netns), "peer": s.traffic(s.peer.Netns), "backend": s.traffic(s.backend.Netns)}
	return s
}

// hairpin has the VM reach itself by an address of a load balancer.
func (s *handingOver) hairpin() {
	s.t.Helper()
	const lb = "kernel-hairpin"
	network := s.nb("--bare", "--columns=name", "find", "logical_switch", "external_ids:\"godwit.dev/owner\"=subnet")
	for i, vip := range hairpinVIPs {
		s.nb("--may-exist", "lb-add", lb, netip.AddrPortFrom(vip, 7).String(), netip.AddrPortFrom(s.vm.Live.Addrs()[i], 7).String(), "tcp")
	}
	s.nb("ls-lb-add", network, lb)
	s.t.Cleanup(func() {
		if _, err := s.NBCtl(context.WithoutCancel(s.t.Context()), "ls-lb-del", network, lb, "--", "lb-del", lb); err != nil {
			s.t.Errorf("remove the load balancer: %v", err)
		}
	})
}

// course is traffic from one to another, which are both asked about it.
type course struct {
	what, from, to string
	spec           traffic.Spec
	run            traffic.RunID
}

// begin opens connections of each kind each way, in both families.
func (s *handingOver) begin() []course {
	s.t.Helper()
	every := func(d time.Duration) traffic.Duration { return traffic.Duration{Duration: d} }
	echo := traffic.Spec{Echo: traffic.Echoing{Connections: 2, Interval: every(200 * time.Millisecond)}, Silence: every(5 * time.Minute)}
	probed := echo
	probed.Probe.Interval = every(200 * time.Millisecond)
	courses := []course{
		{what: throughLoadBalancer, from: "vm", to: "backend", spec: echo}, {what: "to a pod", from: "vm", to: "peer", spec: probed},
		{what: "from a pod", from: "peer", to: "vm", spec: probed}, {what: "to itself, through a load balancer", from: "vm", to: "vm", spec: echo},
	}
	courses[0].spec.Peers, courses[1].spec.Peers, courses[2].spec.Peers, courses[3].spec.Peers = vips, s.peer.Addrs(), s.vm.Live.Addrs(), hairpinVIPs
	courses = append(courses, s.more...)
	for i := range courses {
		courses[i].run = s.scene.begin(s.clients[courses[i].from], courses[i].spec)
	}
	return courses
}

// pings are the logs of ICMP from the VM.
func (s *handingOver) pings() (logs []string) {
	s.t.Helper()
	for i, a := range s.peer.Addrs() {
		log := s.daemon(s.vm.Netns, []string{"ping", "ping6"}[i], a.String())
		s.says(log, "seq=")
		logs = append(logs, log)
	}
	return logs
}

// open opens connections from the VM to the load balancer until it is told to stop, and returns those that it opened. It returns when there are enough.
func (s *handingOver) open() (stop func() []net.Conn) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var conns []net.Conn
	var opened atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			conn, err := s.DialIn(s.vm.Netns)(ctx, "tcp", netip.AddrPortFrom(vips[i%len(vips)], 7).String())
			if err == nil {
				conns = append(conns, conn)
				opened.Add(1)
			}
			select {
			case <-ctx.Done():
			case <-time.After(openEvery):
			}
		}
	})
	s.await("connections while the VM moves", func(context.Context) error {
		if n := opened.Load(); n < openedAtLeast {
			return fmt.Errorf("%d, want %d at least", n, openedAtLeast)
		}
		return nil
	})
	return func() []net.Conn {
		cancel()
		wg.Wait()
		s.t.Cleanup(func() {
			for _, c := range conns {
				_ = c.Close()
			}
		})
		return conns
	}
}

// record is the PortMigration of a migration; nil if there is none.
func (s *handingOver) record(ctx context.Context, vmim *kubevirtv1.VirtualMachineInstanceMigration) (*v1alpha1.PortMigration, error) {
	var list v1alpha1.PortMigrationList
	if err := s.API.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list.Items, func(pm v1alpha1.PortMigration) bool { return pm.Spec.Migration.UID == vmim.UID })
	if i < 0 {
		return nil, fmt.Errorf("migration %s has no PortMigration", vmim.Name)
	}
	return &list.Items[i], nil
}

// handed waits until a migration's source has begun to hand connections over.
func (s *handingOver) handed(vmim *kubevirtv1.VirtualMachineInstanceMigration) {
	s.t.Helper()
	s.await("hand-over of connections", func(ctx context.Context) error {
		pm, err := s.record(ctx, vmim)
		if err == nil && (pm.Status.Source == nil || pm.Status.Source.Connections == nil || pm.Status.Source.Connections.Began == nil) {
			err = errors.New("it has not begun")
		}
		return err
	})
}

// prepare begins a migration to the other node.
func (s *handingOver) prepare() (*kubevirtv1.VirtualMachineInstanceMigration, *cluster.Pod) {
	s.t.Helper()
	to := s.other()
	vmim, target, err := s.vm.Migration(s.t.Context(), to)
	if err != nil {
		s.t.Fatal(err)
	}
	s.asked(s.vm, s.vm.Live.Node.Name+","+to.Name, "rarp")
	s.activated(s.vm, "")
	return vmim, target
}

// other is the node of the two that the VM is not on.
func (s *handingOver) other() *cluster.Node {
	if s.vm.Live.Node == s.Nodes[1] {
		return s.Nodes[0]
	}
	return s.Nodes[1]
}

// arrive ends it, as KubeVirt does: the VM announces itself, is called ready, and the migration is called over.
func (s *handingOver) arrive(vmim *kubevirtv1.VirtualMachineInstanceMigration, target *cluster.Pod) {
	s.t.Helper()
	source := s.vm.Live
	if err := s.vm.Arrive(s.t.Context(), target, "tool", "rarp", "eth0"); err != nil {
		s.t.Fatal(err)
	}
	s.activated(s.vm, target.Node.Name)
	if err := s.vm.Ready(s.t.Context(), target); err != nil {
		s.t.Fatal(err)
	}
	s.asked(s.vm, target.Node.Name, "")
	s.ended(s.vm, vmim, source)
}

// agents restarts those of the VM's nodes.
func (s *scene) agents(flags ...string) {
	s.t.Helper()
	for _, n := range s.Nodes[:2] {
		if err := n.RestartAgent(context.WithoutCancel(s.t.Context()), flags...); err != nil {
			s.t.Fatal(err)
		}
	}
}

// handOver has agents hand connections over for the length of the test.
func (s *scene) handOver() {
	s.t.Helper()
	s.t.Cleanup(func() { s.agents() })
	s.agents("--handoff", "--log-level=debug")
}

// TestHandoffMigration moves a VM whose connections no rule admits in their middle, with the agents' hand-over and without: with it all go on, and those that were opened meanwhile; without it
// those through a load balancer die. In the last it is the hypervisor's word that ends the hand-over. MOVES=10 moves more often, with it and without, SIGNALS=10 more often by that word, ENTRIES=50000 once with so many entries.
func TestHandoffMigration(t *testing.T) {
	s := newHandingOver(t, "handoff-move")
	s.leavesCluster()
	s.stays()
	s.answersSCTP()
	moves, many := number(t, "MOVES", movesUsually), number(t, "ENTRIES", entriesUsually)
	without, with := tally{}, tally{}
	for i := range moves {
		t.Run(fmt.Sprintf("without, move %d", i+1), func(t *testing.T) { s.someDie(t, without) })
	}
	t.Logf("without the hand-over, in %d moves: %s", moves, without)
	if c := without[throughLoadBalancer]; c.lived == c.all {
		t.Errorf("without the hand-over all connections %s live, %d of them: what the test shows with it is nothing", throughLoadBalancer, c.all)
	}
	s.handOver()
	for i := range moves {
		t.Run(fmt.Sprintf("move %d", i+1), func(t *testing.T) { s.allLive(t, move{tally: with}) })
	}
	t.Run(fmt.Sprintf("%d entries", many), func(t *testing.T) { s.allLive(t, move{tally: with, besides: many}) })
	for i := range number(t, "SIGNALS", 1) {
		t.Run(fmt.Sprintf("by the signal, move %d", i+1), func(t *testing.T) { s.allLive(t, move{tally: with, besides: many, signal: true}) })
	}
	t.Logf("with the hand-over: %s", with)
}

// number is one that the environment names, if it does.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text, ok := os.LookupEnv(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

func (s *handingOver) inside(t *testing.T) *handingOver {
	in := *s
	in.scene = s.scene.in(t)
	return &in
}

// move is how a VM is moved.
type move struct {
	// besides are so many entries of its zone that nobody uses.
	besides int
	// signal: the hypervisor tells that it has stopped the VM.
	signal bool
	// tally counts what becomes of its connections.
	tally tally
}

// allLive moves the VM once.
func (s *handingOver) allLive(t *testing.T, m move) {
	in := s.inside(t)
	if m.besides > s.besides { // those that are there move with the VM
		s.besides = m.besides
		in.run("", slices.Concat([]string{"tool", "fill"}, in.zoneOn(in.vm.Live.Node).args(), []string{fmt.Sprint(m.besides), in.vm.Live.Addrs()[0].String()})...)
	}
	arrive := in.arrive
	if m.signal {
		h := in.hypervisor()
		arrive = func(vmim *kubevirtv1.VirtualMachineInstanceMigration, target *cluster.Pod) {
			in.arriveBySignal(h, vmim, target)
		}
	}
	courses, pings, associations, others := in.begin(), in.pings(), in.associate(), in.beside()
	tags := in.tags(in.vm.Live.Node)
	source := in.vm.Live.Node
	vmim, target := in.prepare()
	in.handed(vmim)
	stop := in.open()
	arrive(vmim, target)
	opened := stop()
	others()
	in.keeps()
	var silent time.Duration
	for _, c := range courses {
		in.progress(in.clients[c.to], c.run)
		r := in.stop(in.clients[c.from], c.run)
		if open, _ := r.Open(); open != c.spec.Echo.Connections {
			t.Errorf("%s %d connections were opened, want %d", c.what, open, c.spec.Echo.Connections)
		}
		m.tally.connections(c.what, r)
		for _, p := range r.Probes {
			if p.Gap.Open {
				t.Errorf("%s: probes to %s are not answered any more", c.what, p.Peer)
			}
			silent = max(silent, p.Gap.Length())
		}
	}
	for _, log := range pings {
		in.goesOn(log, "seq=", nil)
		m.tally.add("ICMP to a pod", nil)
	}
	in.goOn(associations, tags)
	for _, a := range associations {
		m.tally.add(a.what, nil)
	}
	for i, err := range in.echoes(opened, 1, echoWithin) {
		m.tally.add(openedMeanwhile, err)
		if err != nil {
			t.Errorf("connection %d of %d that were opened while the VM moved: %v", i+1, len(opened), err)
		}
	}
	t.Logf("the source's agent, of its last looks: %s", in.run("", "sh", "-c", "grep -E 'handed over|looked for the VM' "+source.AgentLog()+" | tail -n 5"))
	in.reported(vmim, openedAtLeast+m.besides)
	t.Logf("probes were not answered for %s at most; %d connections were opened while the VM moved; peaks of the agents' memory: %s", silent.Round(time.Millisecond), len(opened), in.peaks())
}

// peaks is the most memory that each agent of the VM's nodes has had since its start.
func (s *handingOver) peaks() (out string) {
	s.t.Helper()
	for _, n := range s.Nodes[:2] {
		out += n.Name + " " + s.run("", "sh", "-c", fmt.Sprintf(`for p in /proc/[0-9]*; do if tr "\0" " " < $p/cmdline 2>/dev/null | grep -q "^godwit-agent --node-name=%s "; then grep VmHWM $p/status; fi; done`, n.Name)) + " "
	}
	return out
}

// goesOn waits until a log has more lines of a word, replies. look sees it each time, if it is not nil.
func (s *handingOver) goesOn(log, word string, look func(log []byte)) {
	s.t.Helper()
	before := -1
	s.await("replies in "+log, func(ctx context.Context) error {
		b, err := s.ReadFile(ctx, log)
		if err == nil && look != nil {
			look(b)
		}
		now := strings.Count(string(b), word)
		if before < 0 {
			before = now
		}
		if err == nil && now < before+2 {
			err = fmt.Errorf("there are %d, %d before", now, before)
		}
		return err
	})
}

// reported checks what the record tells of connections.
func (s *handingOver) reported(vmim *kubevirtv1.VirtualMachineInstanceMigration, least int) {
	s.t.Helper()
	s.await("record of the connections", func(ctx context.Context) error {
		pm, err := s.record(ctx, vmim)
		if err != nil {
			return err
		}
		st := pm.Status
		committed, ok := st.Stage(v1alpha1.StageCommitted)
		if st.Source == nil || st.Target == nil || st.Source.Connections == nil || st.Target.Connections == nil || st.Source.Connections.Ended == nil || !ok {
			return fmt.Errorf("it has %+v and %+v", st.Source, st.Target)
		}
		from, to := *st.Source.Connections, *st.Target.Connections
		prepared, _ := st.Stage(v1alpha1.StagePrepared)
		ready, _ := st.Stage(v1alpha1.StageReady)
		if from.Ended.After(committed) && committed.Sub(ready) < heldFor || from.Left != 0 || to.Refused != 0 || to.Moved < int64(least) {
			return fmt.Errorf("%+v, %+v, ready at %s, committed at %s: want it ended by then, or %s waited for it, nothing left or refused, and %d moved at least", from, to, ready, committed, heldFor, least)
		}
		s.t.Logf("first look and telling: %s; after the VM was ready: last look ended after %s, committed after %s: %+v", from.Began.Sub(prepared), from.Ended.Sub(ready), committed.Sub(ready), to)
		return nil
	})
}

// someDie moves the VM once without the hand-over, and counts what lives.
func (s *handingOver) someDie(t *testing.T, tally tally) {
	in := s.inside(t)
	courses, pings, associations := in.begin(), in.pings(), in.associate()
	vmim, target := in.prepare()
	stop := in.open()
	in.arrive(vmim, target)
	opened := stop()
	logs := slices.Clone(pings)
	for _, a := range associations {
		logs = append(logs, a.log)
	}
	time.Sleep(watchedAfter - deadFor)
	start, before := time.Now(), in.sizes(logs)
	for _, err := range in.echoes(opened, max(1, len(opened)), deadFor) { // those that are dead all wait at the same time
		tally.add(openedMeanwhile, err)
	}
	time.Sleep(time.Until(start.Add(deadFor)))
	for i, died := range grew(before, in.sizes(logs)) {
		if i < len(pings) {
			tally.add("ICMP to a pod", died)
		} else {
			tally.add(associations[i-len(pings)].what, died)
		}
	}
	for _, c := range courses {
		r, err := in.clients[c.from].Stop(t.Context(), c.run)
		if err != nil {
			t.Fatal(err)
		}
		tally.connections(c.what, r)
	}
	in.keeps()
}
