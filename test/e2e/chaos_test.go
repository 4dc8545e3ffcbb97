package e2e

import (
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// Moments that many faults have. Held at Scheduling the target has its pod and its port is prepared; at Switchover QEMU has stopped the VM on the source; at Resume
// all of it is on the target, where it does not run yet; at Detected it runs there, and nobody has been told.
var (
	phases = []kubevirt.Stage{
		kubevirt.StageTargetPod, kubevirt.StageScheduling, kubevirt.StageHandOff, kubevirt.StagePreparingTarget, kubevirt.StageMigrate, kubevirt.StageSwitchover,
		kubevirt.StageResume, kubevirt.StageDetected, kubevirt.StageReady, kubevirt.StageReadyAnnotation, kubevirt.StageEndTimestamp, kubevirt.StageCompleted,
		kubevirt.StageSucceeded, kubevirt.StageSourceEnds,
	}
	around = []kubevirt.Stage{
		kubevirt.StageTargetPod, kubevirt.StageMigrate, kubevirt.StageSwitchover, kubevirt.StageResume, kubevirt.StageDetected, kubevirt.StageEndTimestamp, kubevirt.StageSourceEnds,
	}
	outages = []kubevirt.Stage{kubevirt.StageMigrate, kubevirt.StageSwitchover, kubevirt.StageResume, kubevirt.StageDetected, kubevirt.StageEndTimestamp}
)

// outage is how long what is needed cannot be reached.
const outage = 10 * time.Second

// reconnects is how long after the return of a database ovn-controller, at worst, tries to connect to it again.
const reconnects = 8 * time.Second

// faults are the rows of the matrix. docs/migration.md tables them.
func faults() []fault {
	return slices.Concat([]fault{undisturbed}, migrationFaults(), podFaults(), restartFaults(), outageFaults(), courses())
}

// migrationFaults are those of KubeVirt and QEMU themselves.
func migrationFaults() []fault {
	failing := func(f kubevirt.Fault) lab.MigrateOptions { return lab.MigrateOptions{Fault: f} }
	unschedulable, stuck := failing(kubevirt.FaultUnschedulable), failing(kubevirt.FaultTargetStuck)
	unschedulable.PendingTimeout, stuck.PendingTimeout = 3*time.Second, 3*time.Second
	postCopy := lab.MigrateOptions{Mode: "PostCopy", Bandwidth: 12 << 20}
	postCopyFails := postCopy
	postCopyFails.Fault = kubevirt.FaultPostCopy
	return []fault{
		{name: "cancelled", at: []kubevirt.Stage{kubevirt.StageScheduling, kubevirt.StageHandOff, kubevirt.StageStart, kubevirt.StageMigrate, kubevirt.StageSwitchover},
			strike: migrationCancelled, ends: stayed},
		{name: "cancelled-too-late", at: []kubevirt.Stage{kubevirt.StageResume, kubevirt.StageDetected, kubevirt.StageEndTimestamp}, strike: migrationCancelled, ends: moved},
		{name: "target-pod-fails", options: failing(kubevirt.FaultTargetPod), ends: stayed},
		{name: "target-unschedulable", options: unschedulable, ends: stayed, unrecorded: true},
		{name: "target-stuck", options: stuck, ends: stayed},
		failsLate,
		{name: "target-fails-late-succeeded", options: failing(kubevirt.FaultTargetLateSucceeded), ends: stayed},
		targetEnds,
		{name: "source-crashes", options: failing(kubevirt.FaultSourceCrash), ends: died},
		{name: "post-copy", options: postCopy, ends: moved},
		{name: "post-copy-fails", options: postCopyFails, ends: died},
		{name: "hotplug", options: lab.MigrateOptions{Hotplug: "volume"}, ends: moved},
	}
}

// podFaults are those of pods and nodes.
func podFaults() []fault {
	before := []kubevirt.Stage{kubevirt.StageHandOff, kubevirt.StageMigrate, kubevirt.StageSwitchover, kubevirt.StageResume}
	return []fault{
		{name: "target-deleted", at: before, strike: podDeleted(onTarget), ends: stayed},
		{name: "target-replaced", at: []kubevirt.Stage{kubevirt.StageScheduling}, strike: targetReplaced, ends: moved, detour: true},
		{name: "source-deleted", at: []kubevirt.Stage{kubevirt.StageHandOff, kubevirt.StageSwitchover, kubevirt.StageDetected, kubevirt.StageReady}, strike: podDeleted(onSource), ends: died},
		{name: "source-deleted", at: []kubevirt.Stage{kubevirt.StageCompleted, kubevirt.StageSourceEnds}, strike: podDeleted(onSource), ends: moved},
		{name: "target-node-crashes", at: []kubevirt.Stage{kubevirt.StageMigrate, kubevirt.StageSwitchover}, strike: all(crashed(onTarget), podDeleted(onTarget)),
			restore: booted(onTarget), ends: stayed},
		{name: "source-node-crashes", at: []kubevirt.Stage{kubevirt.StageMigrate, kubevirt.StageSwitchover}, strike: all(crashed(onSource), unready(onSource), podDeleted(onSource)),
			restore: booted(onSource), ends: died},
		{name: "source-node-crashes", at: []kubevirt.Stage{kubevirt.StageEndTimestamp}, strike: crashed(onSource), restore: booted(onSource), ends: moved},
	}
}

// restartFaults kill a part of Godwit or of OVN, and let the migration go on at once.
func restartFaults() []fault {
	return []fault{
		{name: "controller-killed", at: phases, strike: leaderKilled, back: led, ends: moved, unrecorded: true},
		{name: "controller-restarted", at: phases, strike: all(leaderKilled, led), ends: moved},
		{name: "agent-killed-on-source", at: around, strike: killed("godwit-agent", onSource), ends: moved},
		{name: "agent-killed-on-target", at: around, strike: killed("godwit-agent", onTarget), ends: moved},
		{name: "ovn-controller-killed-on-source", at: around, strike: killed("ovn-controller", onSource), ends: moved},
		{name: "ovn-controller-killed-on-target", at: around, strike: killed("ovn-controller", onTarget), ends: moved},
		{name: "all-killed", at: outages, strike: all(leaderKilled, killed("godwit-agent", onSource), killed("godwit-agent", onTarget),
			killed("ovn-controller", onSource), killed("ovn-controller", onTarget)), back: everybodyBack, ends: moved},
	}
}

// outageFaults are those in which a server of the cluster cannot be reached for ten seconds.
func outageFaults() []fault {
	// Of the databases, a word of their sockets, on the hub and in pods; the southbound one's ports, its gate's among them.
	const server, nb, sb, api = "ovsdb-server", `/\(ovn\)*nb[_db]*\.sock`, `/\(ovn\)*sb[_db]*\.sock`, "kube-apiserver"
	const nbPort, sbPorts = "6641", "{ 6642, 6645 }"
	return []fault{
		{name: "sb-frozen", at: outages, strike: frozen(onCentral, server, sb), lift: thawed(onCentral, server, sb), outage: outage, ends: moved},
		{name: "sb-cut", at: outages, strike: cut(sbPorts), lift: mended, outage: outage, ends: moved},
		// ovn-controller knows of it, and writes nothing until it is connected again, which it tries every eight seconds at last.
		{name: "sb-refused", at: outages, strike: refused(sbPorts), lift: mended, outage: outage, silent: reconnects, ends: moved},
		{name: "nb-frozen", at: outages, strike: frozen(onCentral, server, nb), lift: thawed(onCentral, server, nb), outage: outage, ends: moved},
		// What was under way is sent again when TCP tries, at worst as long after the cut as the cut was.
		{name: "nb-cut", at: outages, strike: cut(nbPort), lift: mended, outage: outage, grace: outage, ends: moved},
		{name: "api-frozen", at: []kubevirt.Stage{kubevirt.StageMigrate, whileCopying, kubevirt.StageDetected, kubevirt.StageEndTimestamp},
			strike: frozen(onHub, api, api), lift: thawed(onHub, api, api), outage: outage, deaf: true, back: led, ends: moved},
	}
}

// courses are those of several migrations.
func courses() []fault {
	return []fault{
		{name: "paused", at: []kubevirt.Stage{kubevirt.StageScheduling, kubevirt.StageIncoming}, run: paused, ends: moved},
		{name: "on-and-on", run: onAndOnAtOnce, ends: moved},
		{name: "after-failures", run: afterFailures, ends: moved, rewound: true},
		{name: "stale-record", run: staleRecord, ends: moved},
		{name: "ten-at-once", run: tenAtOnce, ends: moved, slow: true},
	}
}

// cells are all of the matrix.
func cells() []*cell {
	var all []*cell
	for _, f := range faults() {
		if len(f.at) == 0 {
			f.at = []kubevirt.Stage{""}
		}
		for _, at := range f.at {
			all = append(all, &cell{fault: f, moment: at})
		}
	}
	return all
}

// handful are the cells that every run of the tests has.
const handful = `^(cancelled@HandOff|cancelled@Switchover|target-fails-late|target-deleted@Resume|source-deleted@Detected|all-killed@Switchover|` +
	`ovn-controller-killed-on-target@Resume|sb-frozen@Switchover|on-and-on)$`

// TestChaosMatrix does to a VM, one after another, what may go wrong in a migration. CELLS=all for the whole matrix, or a regular expression for some of it.
func TestChaosMatrix(t *testing.T) {
	which := os.Getenv("CELLS")
	switch which {
	case "":
		which = handful
	case "all":
		which = "."
	}
	chosen, err := regexp.Compile(which)
	if err != nil {
		t.Fatalf("CELLS: %v", err)
	}
	played := 0
	for _, c := range cells() {
		if !chosen.MatchString(c.String()) {
			continue
		}
		t.Run(c.String(), func(t *testing.T) { c.on(t, played%2) })
		played++
	}
	if played == 0 {
		t.Errorf("CELLS=%s: there is no such cell", which)
	}
}

// on plays the cell on a VM of the pool, which is not used again if anything is wrong.
func (c *cell) on(t *testing.T, number int) {
	t.Helper()
	c.vm = chaos.vm(t, number)
	start := time.Now()
	t.Cleanup(func() {
		if t.Failed() {
			chaos.discard(t, number)
		}
	})
	c.play(t)
	t.Logf("%s took %.1f s", c, time.Since(start).Seconds())
}

// TestChaosDraws plays cells that are drawn: fault, moment and VM. DRAWS=100 SEED=n plays so many; FROM=37 goes on where it was left.
func TestChaosDraws(t *testing.T) {
	draws, seed, from := number(t, "DRAWS", 2), number(t, "SEED", 5), number(t, "FROM", 0)
	all := slices.DeleteFunc(faults(), func(f fault) bool { return f.slow })
	t.Logf("draws %d to %d of seed %d", from, draws-1, seed)
	for i := from; i < draws; i++ {
		random := rand.New(rand.NewPCG(uint64(seed), uint64(i))) // each its own: the first need not be drawn to draw the last
		f := all[random.IntN(len(all))]
		c := &cell{fault: f}
		if len(f.at) > 0 {
			c.moment = f.at[random.IntN(len(f.at))]
		}
		vm := random.IntN(2)
		t.Run(strconv.Itoa(i)+":"+c.String(), func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("again: DRAWS=%d SEED=%d FROM=%d make e2e RUN=TestChaosDraws", i+1, seed, i)
				}
			})
			c.on(t, vm)
		})
	}
}

// number reads one from the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q: want a number", name, s)
	}
	return n
}
