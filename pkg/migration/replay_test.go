package migration

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// event is one line of a recording: what a watch delivered, t seconds after some beginning.
type event struct {
	T      float64         `json:"t"`
	Kind   string          `json:"kind"` // vmis, pods, vmims; others are passed over
	Type   string          `json:"type"` // ADDED, MODIFIED, DELETED; others are passed over
	Object json.RawMessage `json:"object"`
}

// mode is how the world around a recording behaves. The recording itself happened as it did; what varies is what it cannot tell.
type mode struct {
	name string
	// strict: the controller decides after every event, so that a target's port must be prepared before it runs.
	strict bool
	// every: the controller decides after every n-th event only, having been away in between, and after the last.
	every int
	// silent: no RARP ever comes through.
	silent bool
	// slow: northd runs before every third event only.
	slow bool
	// from and to: the controller is away for these events (from ≤ i < to) and restarted after them.
	from, to int
}

// TestReplay replays recordings of watch events (-traces): it decides after every event, tells every change of phase, requested-chassis and
// activation-strategy, and fails on a broken invariant. OVN and the agents are played: see player. Each recording is replayed again with a controller
// that is away most of the time, with lost RARPs and with a slow northd; these are not told.
func TestReplay(t *testing.T) {
	for _, path := range recordings(t) {
		t.Run(strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".gz"), ".jsonl"), func(t *testing.T) {
			events := readRecording(t, path)
			for _, m := range []mode{
				{name: "as recorded", strict: true, every: 1},
				{name: "no RARP", strict: true, every: 1, silent: true},
				{name: "slow northd", every: 1, slow: true},
				{name: "controller mostly away", every: 7},
				{name: "controller away until the end", every: len(events)},
			} {
				replay(t, m, events)
			}
		})
	}
}

// TestRestart restarts the controller at every event of the recordings, having been away for no, a few or all of the events that follow: the ports end
// the same.
func TestRestart(t *testing.T) {
	for _, path := range recordings(t) {
		t.Run(strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".gz"), ".jsonl"), func(t *testing.T) {
			events := readRecording(t, path)
			want := replay(t, mode{name: "always there", every: 1, strict: true}, events)
			for from := range events {
				for _, away := range []int{1, 6, len(events)} {
					m := mode{name: fmt.Sprintf("away from event %d to %d", from, from+away), every: 1, from: from, to: from + away}
					if got := replay(t, m, events); !maps.Equal(got, want) {
						t.Errorf("%s: the ports end as %v, want %v", m.name, got, want)
					}
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// A recording is read alike with and without compression.
func TestReplayReadsGzip(t *testing.T) {
	plain := "testdata/traces/a_b_c.jsonl"
	text, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	packed := filepath.Join(t.TempDir(), "a_b_c.jsonl.gz")
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(packed, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(readRecording(t, plain), readRecording(t, packed)); diff != "" {
		t.Errorf("-plain +gzip:\n%s", diff)
	}
}

// recordings are the files of -traces; a relative directory is looked for here, then from the top of the repository, where go test was started.
func recordings(t *testing.T) []string {
	var out []string
	for _, dir := range []string{*traces, filepath.Join("..", "..", *traces)} {
		for _, pattern := range []string{"*.jsonl.gz", "*.jsonl"} {
			paths, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				t.Fatalf("-traces=%s: %v", dir, err)
			}
			out = append(out, paths...)
		}
		if len(out) > 0 {
			return out
		}
	}
	t.Fatalf("-traces=%s: no *.jsonl.gz or *.jsonl in it", *traces)
	return nil
}

func readRecording(t *testing.T, path string) []event {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var events []event
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if len(strings.TrimSpace(lines.Text())) == 0 {
			continue
		}
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%s: line %d: %v", path, len(events)+1, err)
		}
		events = append(events, e)
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if len(events) == 0 {
		t.Fatalf("%s: no events", path)
	}
	return events
}

// player is what surrounds the decisions: the objects as the recording leaves them, and of every VM (by namespace/name) its rows in a played OVN.
type player struct {
	t     *testing.T
	mode  mode
	now   float64
	base  time.Time // the wall clock at t = 0
	pods  map[string]*corev1.Pod
	vmis  map[string]*kubevirtv1.VirtualMachineInstance
	vmims map[string]*kubevirtv1.VirtualMachineInstanceMigration
	vms   map[string]*playedVM
	nodes map[ident.ChassisName]bool
}

// playedVM is one VM's rows and what its agents did.
type playedVM struct {
	name     string
	ovn      *fakeOVN
	last     Decision
	told     string
	granted  map[string]bool // by pod UID: may attach, attached when its row said so
	attached map[string]ident.ChassisName
	seen     map[string]bool // by pod UID: was seen with a node before it ran
}

// replay returns what every port asks for in the end.
func replay(t *testing.T, m mode, events []event) map[string]string {
	p := &player{t: t, mode: m, pods: map[string]*corev1.Pod{}, vmis: map[string]*kubevirtv1.VirtualMachineInstance{},
		vmims: map[string]*kubevirtv1.VirtualMachineInstanceMigration{}, vms: map[string]*playedVM{}, nodes: map[ident.ChassisName]bool{}}
	for i, e := range events {
		p.now = e.T
		p.take(e)
		present := ((i+1)%m.every == 0 || i == len(events)-1) && (i < m.from || i >= m.to)
		for _, vm := range p.sorted() {
			p.agents(vm)
			if !m.slow || i%3 == 0 {
				vm.ovn.northd()
			}
			if present {
				p.controller(vm)
			}
		}
		if present && !m.slow && m.to == 0 && i < len(events)-1 {
			p.pass(events[i+1].T)
		}
	}
	ends := map[string]string{}
	for _, vm := range p.sorted() {
		for range 6 { // what is on its way arrives
			vm.ovn.northd()
			p.agents(vm)
			p.controller(vm)
		}
		p.end(vm)
		for network, row := range vm.ovn.rows {
			ends[vm.name+"/"+network] = row.Options[ident.OptionRequestedChassis] + " " + row.Options[ident.OptionActivationStrategy]
		}
	}
	return ends
}

// pass lets northd and the agents do what they have the time for until the next event: a round takes 10 ms, and after a few there is nothing to do.
func (p *player) pass(until float64) {
	for range 5 {
		if p.now += 0.01; p.now >= until {
			return
		}
		for _, vm := range p.sorted() {
			vm.ovn.northd()
			p.agents(vm)
			p.controller(vm)
		}
	}
}

func (p *player) sorted() []*playedVM {
	return slices.SortedFunc(maps.Values(p.vms), func(a, b *playedVM) int { return strings.Compare(a.name, b.name) })
}

// take puts an event's object where a watch's cache would have it.
func (p *player) take(e event) {
	switch e.Kind {
	case "vmis":
		cache(p, p.vmis, e, &kubevirtv1.VirtualMachineInstance{})
	case "pods":
		cache(p, p.pods, e, &corev1.Pod{})
	case "vmims":
		cache(p, p.vmims, e, &kubevirtv1.VirtualMachineInstanceMigration{})
	}
	p.learn(e)
}

// learn finds out which VMs and nodes there are.
func (p *player) learn(e event) {
	for key, vmi := range p.vmis {
		if p.base.IsZero() && !vmi.CreationTimestamp.IsZero() {
			p.base = vmi.CreationTimestamp.Add(-time.Duration(e.T * float64(time.Second)))
		}
		if p.vms[key] == nil {
			vm := &playedVM{name: key, ovn: newFakeOVN(), granted: map[string]bool{}, attached: map[string]ident.ChassisName{}, seen: map[string]bool{}}
			vm.ovn.chassis = p.nodes
			vm.ovn.port(ident.DefaultNetwork)
			p.vms[key] = vm
		}
		for i := range vmi.Spec.Networks {
			if n := &vmi.Spec.Networks[i]; n.Multus != nil && !n.Multus.Default && p.vms[key].ovn.rows[n.Name] == nil {
				p.vms[key].ovn.port(n.Name)
			}
		}
	}
	for _, pod := range p.pods {
		if pod.Spec.NodeName != "" {
			p.nodes[ident.ChassisName(pod.Spec.NodeName)] = true
		}
	}
}

func cache[T metav1.Object](p *player, into map[string]T, e event, object T) {
	if err := json.Unmarshal(e.Object, object); err != nil {
		p.t.Fatalf("t=%.3f: %s is not what it claims to be: %v", e.T, e.Kind, err)
	}
	key := object.GetNamespace() + "/" + object.GetName()
	switch e.Type {
	case "ADDED", "MODIFIED":
		into[key] = object
	case "DELETED":
		delete(into, key)
	}
}

// agents attach what may attach, and let a VM that starts on the target announce itself there.
func (p *player) agents(vm *playedVM) {
	for _, key := range slices.Sorted(maps.Keys(p.pods)) {
		pod := p.pods[key]
		vmi := p.vmis[vm.name]
		if vmi == nil || !isLauncher(pod, vmi) {
			continue
		}
		uid, c := string(pod.UID), ident.ChassisName(pod.Spec.NodeName)
		if vm.granted[uid] && vm.attached[uid] == "" && c != "" && !finished(pod) && vm.ovn.asks(c, networks(pod, vmi)) {
			vm.attached[uid] = c
		}
		if pod.Status.Phase == corev1.PodRunning && p.mode.strict && vm.seen[uid] && vm.attached[uid] == "" {
			p.t.Errorf("%s: t=%.3f: pod %s runs on %s, but it was never allowed to attach: requested-chassis must name its chassis first",
				p.mode.name, p.now, pod.Name, c)
			vm.attached[uid] = c
		}
		vm.seen[uid] = c != "" && pod.Status.Phase == corev1.PodPending
		state := vmi.Status.MigrationState
		if state == nil || state.TargetPod != pod.Name || vm.attached[uid] == "" || p.mode.silent || finished(pod) {
			continue
		}
		if state.TargetNodeDomainDetected || state.TargetNodeDomainReadyTimestamp != nil || state.Mode == kubevirtv1.MigrationPostCopy {
			vm.ovn.activate(c)
		}
	}
}

// controller decides for a VM, writes, and tells what changed.
func (p *player) controller(vm *playedVM) {
	d := p.decide(vm)
	if again := p.decide(vm); describe(again) != describe(d) {
		p.t.Errorf("%s: t=%.3f: two decisions about the same:\n%s%s", p.mode.name, p.now, describe(d), describe(again))
	}
	if err := vm.ovn.apply(d); err != nil {
		p.t.Errorf("%s: t=%.3f: %v", p.mode.name, p.now, err)
	}
	if again := p.decide(vm); changed(again) {
		p.t.Errorf("%s: t=%.3f: deciding twice changes a port:\n%s%s", p.mode.name, p.now, describe(d), describe(again))
	}
	for _, a := range p.decide(vm).Attach { // the next look, at what was just written
		vm.granted[a.PodUID] = true
	}
	vm.last = d
	p.tell(vm)
}

func (p *player) decide(vm *playedVM) Decision {
	pods := slices.Collect(maps.Values(p.pods))
	vmims := slices.Collect(maps.Values(p.vmims))
	now := p.base.Add(time.Duration(p.now * float64(time.Second)))
	return Decide(Observe(pods, p.vmis[vm.name], vmims, vm.ovn.rows, vm.ovn.bindings()), Env{Now: now, Chassis: p.nodes})
}

func (p *player) tell(vm *playedVM) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-10s %-20s", vm.last.Phase, vm.last.Reason)
	for _, port := range vm.last.Ports {
		strategy := port.Want.Strategy
		if strategy == "" {
			strategy = "-"
		}
		fmt.Fprintf(&b, " %s: requested-chassis=%s activation-strategy=%s", port.Network, port.Want.Requested, strategy)
	}
	if text := b.String(); text != vm.told {
		vm.told = text
		if p.mode.name == "as recorded" && (testing.Verbose() || *traces != flag.Lookup("traces").DefValue) {
			fmt.Printf("%-24s t=%9.3f %-12s %s\n", p.t.Name(), p.now, vm.name, text)
		}
	}
}

// end holds the end of a recording against where the VM runs: Settled there, or Stopped. A recording that stops in the middle of a migration has
// not come to its end; then the VM's chassis must be among those asked for.
func (p *player) end(vm *playedVM) {
	d := vm.last
	live, home, moving := p.truth(vm.name)
	for _, port := range d.Ports {
		switch {
		case home == "" && (moving || live > 1): // the recording does not tell
		case moving:
			if !slices.Contains(strings.Split(port.Want.Requested, ","), home) && port.Network == ident.DefaultNetwork {
				p.t.Errorf("%s: the VM is on %s in the middle of a migration, port %s asks for %q", p.mode.name, home, port.Network, port.Want.Requested)
			}
		case home == "":
			if d.Phase != Stopped || port.Want.Requested != string(ident.NoChassis) {
				p.t.Errorf("%s: the VM runs nowhere, the end is %s and port %s asks for %q", p.mode.name, d.Phase, port.Network, port.Want.Requested)
			}
		case live == 1 && d.Phase != Settled || d.Phase == Unclear || d.Phase == Stopped:
			p.t.Errorf("%s: the VM runs on %s, the end is %s (%s)", p.mode.name, home, d.Phase, d.Message)
		case port.Network == ident.DefaultNetwork && port.Want.Requested != home, isPair(port.Want.Requested), port.Want.Strategy != "":
			p.t.Errorf("%s: the VM runs on %s, port %s ends as %+v", p.mode.name, home, port.Network, port.Want)
		}
	}
}

// truth is where a VM runs after the last event, by KubeVirt's own word: the VMI's nodeName, as long as one of its launchers is live there. It
// knows nothing of the code under test.
func (p *player) truth(vm string) (live int, home string, moving bool) {
	vmi := p.vmis[vm]
	if vmi == nil || vmi.IsFinal() {
		return 0, "", false
	}
	var nodes []string
	jobs := map[string]bool{}
	for _, pod := range p.pods {
		if isLauncher(pod, vmi) && !finished(pod) && pod.Spec.NodeName != "" {
			nodes = append(nodes, pod.Spec.NodeName)
			jobs[pod.Labels[kubevirtv1.MigrationJobLabel]] = true
		}
	}
	for _, vmim := range p.vmims {
		moving = moving || vmim.Spec.VMIName == vmi.Name && vmim.Namespace == vmi.Namespace && !vmim.IsFinal() && jobs[string(vmim.UID)]
	}
	switch {
	case slices.Contains(nodes, vmi.Status.NodeName):
		home = vmi.Status.NodeName
	case len(nodes) == 1:
		home = nodes[0]
	}
	return len(nodes), home, moving
}
