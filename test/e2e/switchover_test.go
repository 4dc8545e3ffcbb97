package e2e

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/passage"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

const (
	// switchoverPort is where agents listen for one another.
	switchoverPort = 9480
	// switchoverLoss is the part of a long stop in which probes may get lost with the signal, besides what was sent before the port was open, on a machine that does other things meanwhile: on an idle one it
	// is a few milliseconds in all. bench-migration measures it.
	switchoverLoss = 0.25
	// switchoverProbe is between two of a passage's probes: so long that all that wait for the guest find room.
	switchoverProbe = 20 * time.Millisecond
	// switchoverPast is for how long after QEMU has let the VM run on the target a probe that is lost counts.
	switchoverPast = 500 * time.Millisecond
	// switchoverStop is how long a VM is stopped where it is looked at meanwhile: long enough to lose a hundred probes without the signal, and for the signal to come although an agent waits for the processor.
	switchoverStop = 2 * time.Second
)

// What is sent to a VM while QEMU has stopped it waits for it on the target, and none of it comes twice.
func TestSwitchoverLosesNothing(t *testing.T) {
	listened(t)
	s := newScene(t, "switchover", 0)
	setScene(t, s)
	err := s.Serve(t.Context(), func(ctx context.Context) error {
		passes(ctx, t, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	consistent(t)
}

// listened waits until every node's agent listens for others: in a lab that has just been made it has to wait for its certificate.
func listened(t *testing.T) {
	t.Helper()
	namespace, err := cluster.Namespace("hub")
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range cluster.NodeNames() {
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			if _, err := cluster.Exec(ctx, node, "test", "-s", "/etc/godwit/tls/tls.crt"); err != nil {
				return fmt.Errorf("node %s has no certificate: %w", node, err)
			}
			conn, err := traffic.Place{Namespace: namespace}.Dial(ctx, "tcp", netip.AddrPortFrom(cluster.NodeIPs(node)[0], switchoverPort).String())
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
}

// passes moves the scene's VM by the signal, by the signal with a long stop, and without the signal.
func passes(ctx context.Context, t *testing.T, s *passage.Scene) {
	t.Helper()
	for i, c := range []struct {
		to     string
		stop   time.Duration
		signal string
		// by is empty for whichever comes first: QEMU's own stop is as short as the way of a signal on a busy machine.
		by v1alpha1.ActivatedBy
	}{
		{s.Target, 0, "", ""},
		{s.Source, switchoverStop, "", v1alpha1.ActivatedBySignal},
		{s.Target, switchoverStop, "false", v1alpha1.ActivatedByRARP},
	} {
		annotate(ctx, t, s, c.signal)
		p, err := s.Pass(ctx, passage.Plan{Target: c.to, Address: i, WarmUp: 2 * time.Second, Quiet: time.Second, Aftermath: time.Second, Stop: c.stop, Interval: switchoverProbe})
		if err != nil {
			t.Error(err)
			return
		}
		lost := 0
		for i := range p.To.Result.Probes {
			lost += len(p.To.Result.Probes[i].LostWithin(p.Stop.Stopped, p.Stop.Resumed.Add(switchoverPast)))
		}
		source, target := p.Record.Status.Source, p.Record.Status.Target
		t.Logf("to %s: QEMU had stopped the VM for %s; %d probes lost in it and shortly after; source %s, target %s", c.to, p.Stop.Duration(), lost, asJSON(source), asJSON(target))
		if target == nil || target.ActivatedBy == "" || c.by != "" && target.ActivatedBy != c.by || source == nil {
			t.Errorf("source %s, target %s: want it to be activated by %s", asJSON(source), asJSON(target), cmp.Or(c.by, "signal or RARP"))
			continue
		}
		once(t, s.VM, p.To.Result, p.To.Arrivals)
		if target.ActivatedBy == v1alpha1.ActivatedByRARP {
			if c.stop == 0 {
				continue // whichever came first
			}
			if least := sentWithin(p) / 2; lost < least {
				t.Errorf("%d probes lost without the signal: want %d at least, or what is not lost with it proves nothing", lost, least)
			}
			continue
		}
		if source.Stopped == nil || source.FramesLost == nil || target.Opened == nil || target.FramesQueued == nil {
			t.Errorf("source %s, target %s: want the stop, the opening, and how many frames waited", asJSON(source), asJSON(target))
			continue
		}
		if c.stop == 0 {
			continue // QEMU's own stop may be over before the next probe is sent
		}
		opening := target.Opened.Sub(source.Stopped.Time)
		if most := int((switchoverLoss*float64(c.stop) + float64(opening)) / float64(switchoverProbe)); lost > most {
			t.Errorf("%d probes lost, want %d at most, the port being open %s after the stop", lost, most, opening)
		}
		if *target.FramesQueued == 0 {
			t.Errorf("target %s: no frame waited for the guest, in a stop of %s", asJSON(target), p.Stop.Duration())
		}
	}
}

// sentWithin is how many probes were sent to the VM while QEMU had stopped it.
func sentWithin(p *passage.Passage) (n int) {
	for i := range p.To.Result.Probes {
		probes := &p.To.Result.Probes[i]
		for _, sent := range probes.Sent {
			if at := probes.Start.Add(sent); at.After(p.Stop.Stopped) && at.Before(p.Stop.Resumed) {
				n++
			}
		}
	}
	return n
}

// annotate says whether the VM's ports are opened on the signal in the next migration.
func annotate(ctx context.Context, t *testing.T, s *passage.Scene, signal string) {
	t.Helper()
	value := "null"
	if signal != "" {
		value = strconv.Quote(signal)
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, v1alpha1.SwitchoverAnnotation, value)
	if _, err := kubectl(ctx, "-n", s.Namespace, "patch", "vmi", s.VM.Name, "--type=merge", "-p", patch); err != nil {
		t.Fatal(err)
	}
}

// stoppedVM is a VM of which QEMU has stopped the source, in a migration that waits at a stage. before is done when its ports are prepared and QEMU has not begun.
func stoppedVM(t *testing.T, vm *machine, to string, at kubevirt.Stage, before func()) *lab.Migration {
	t.Helper()
	began := time.Now()
	happened := func(what string, is func(kubevirt.Entry) bool) {
		t.Helper()
		eventually(t, 30*time.Second, func(context.Context) error {
			entries, err := vm.Journal()
			if err == nil && !slices.ContainsFunc(entries, func(e kubevirt.Entry) bool { return is(e) && e.Time.After(began) }) {
				err = errors.New(what)
			}
			return err
		})
	}
	g := vm.begin(t, lab.MigrateOptions{To: to, Hold: []kubevirt.Stage{kubevirt.StageMigrate, at}})
	happened("KubeVirt has not come to the migration", func(e kubevirt.Entry) bool {
		return e.Event == kubevirt.EventHeld && e.Detail == string(kubevirt.StageMigrate)
	})
	before()
	if err := g.Hold(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	happened("QEMU has not stopped the VM", func(e kubevirt.Entry) bool { return e.Event == string(guest.Stopped) })
	return g
}

// portOpened waits until the target's port of a migration is open, by OVN's own word.
func portOpened(t *testing.T, g *lab.Migration) {
	t.Helper()
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		pm, err := findRecord(ctx, g)
		if err == nil {
			if _, ok := pm.Status.Stage(v1alpha1.StageActivated); !ok {
				err = fmt.Errorf("PortMigration %s: %s: the port is not open", pm.Name, asJSON(pm.Status))
			}
		}
		return err
	})
}

// A migration that is cancelled when the VM is stopped, and its port open on the target: the VM goes on where it was, and the next migration, to the same node, goes as any other.
func TestSwitchoverIsRolledBack(t *testing.T) {
	vm := bootVM(t, lab.VMOptions{Name: "switchover-back", Node: "node1"})
	from := peer(t, "node3")
	vm.watch(t, from, func() {
		g := stoppedVM(t, vm, "node2", kubevirt.StageSwitchover, func() {})
		portOpened(t, g)
		if err := g.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
		defer cancel()
		if err := g.AwaitGone(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			pm, err := findRecord(ctx, g)
			if err == nil && (pm.Status.Result != v1alpha1.MigrationFailed || pm.Status.Target == nil || pm.Status.Target.ActivatedBy != v1alpha1.ActivatedBySignal) {
				err = fmt.Errorf("PortMigration %s: %s: want it to have failed, after the signal", pm.Name, asJSON(pm.Status))
			}
			return err
		})
	})
	if at := vm.node(t); at != "node1" {
		t.Errorf("the VM is on %s, want node1", at)
	}
	vm.untouched(t)
	consistent(t)
	vm.migrate(t, lab.MigrateOptions{To: "node2"})
	vm.untouched(t)
}

// With the target's agent out of reach, or an agent started again between the stop and the VM's arrival, before the signal was sent, heard or after that, the port is open when the VM announces itself at the latest,
// as it is without a signal.
func TestSwitchoverFaults(t *testing.T) {
	vm := bootVM(t, lab.VMOptions{Name: "switchover-faults", Node: "node1"})
	from := peer(t, "node3")
	for _, c := range []struct {
		name, from, to string
		// before is done when the VM is about to be stopped, stopped when it was.
		before, stopped func(t *testing.T, source, target string)
		by              v1alpha1.ActivatedBy
	}{
		{"agents apart", "node1", "node2", apart, nil, v1alpha1.ActivatedByRARP},
		{"target's agent killed", "node2", "node1", nil, func(t *testing.T, _, target string) {
			t.Helper()
			eventually(t, 20*time.Second, func(ctx context.Context) error { return kill(ctx, target, "godwit-agent") })
		}, ""},
		{"source's agent started again before the signal", "node1", "node2", func(t *testing.T, source, _ string) {
			t.Helper()
			agentFrozen(t, source)
		}, func(t *testing.T, source, _ string) {
			t.Helper()
			agentStartedAgain(t, source)
		}, v1alpha1.ActivatedByRARP},
		// A node's agent that is back soon enough hears the signal: the source's tries twice.
		{"target's agent started again before it hears the signal", "node2", "node1", func(t *testing.T, _, target string) {
			t.Helper()
			agentFrozen(t, target)
		}, func(t *testing.T, _, target string) {
			t.Helper()
			agentStartedAgain(t, target)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			settled(t)
			var g *lab.Migration
			vm.watch(t, from, func() {
				g = stoppedVM(t, vm, c.to, kubevirt.StageResume, func() {
					if c.before != nil {
						c.before(t, c.from, c.to)
					}
				})
				if c.stopped != nil {
					c.stopped(t, c.from, c.to)
				}
				if err := g.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
				vm.succeeded(t, g)
			})
			vm.untouched(t)
			if pm := record(t, g); c.by != "" {
				eventually(t, 10*time.Second, func(ctx context.Context) (err error) {
					if pm, err = findRecord(ctx, g); err == nil && (pm.Status.Target == nil || pm.Status.Target.ActivatedBy != c.by) {
						err = fmt.Errorf("PortMigration %s: target %s: want it to be activated by %s", pm.Name, asJSON(pm.Status.Target), c.by)
					}
					return err
				})
			}
			settled(t)
			consistent(t)
		})
	}
}

// agentFrozen stops a node's agent where it is: it hears and says nothing.
func agentFrozen(t *testing.T, node string) {
	t.Helper()
	t.Cleanup(func() { // whatever becomes of the test; another one that runs does not mind
		if out, err := cluster.Exec(context.WithoutCancel(t.Context()), node, "sh", "-c", `kill -CONT $(pidof "$0") || true`, "godwit-agent"); err != nil {
			t.Errorf("let the agent of %s go on: %s %v", node, out, err)
		}
	})
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		_, err := cluster.Exec(ctx, node, "sh", "-c", `kill -STOP $(pidof "$0")`, "godwit-agent")
		return err
	})
}

// agentStartedAgain kills a node's agent, and waits until another is ready.
func agentStartedAgain(t *testing.T, node string) {
	t.Helper()
	agents := func(ctx context.Context) (string, error) {
		out, err := cluster.Exec(ctx, node, "pidof", "godwit-agent")
		return strings.TrimSpace(out), err
	}
	before, err := agents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := kill(t.Context(), node, "godwit-agent"); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func(ctx context.Context) error {
		now, err := agents(ctx)
		if err == nil && now == before {
			err = fmt.Errorf("the agent of %s is process %s still", node, before)
		}
		return err
	})
	settled(t)
}

// apart drops what comes to the agent of a migration's target from others, to the end of the test.
func apart(t *testing.T, _, node string) {
	t.Helper()
	rules := fmt.Sprintf("table inet switchover { chain in { type filter hook input priority 0; tcp dport %d drop; }; }", switchoverPort)
	if out, err := cluster.Exec(t.Context(), node, "nft", rules); err != nil {
		t.Fatalf("part the agents: %s %v", out, err)
	}
	t.Cleanup(func() {
		if out, err := cluster.Exec(context.WithoutCancel(t.Context()), node, "nft", "delete table inet switchover"); err != nil {
			t.Errorf("join the agents again: %s %v", out, err)
		}
	})
}

// Nobody gets to say anything to an agent without a node's certificate.
func TestSwitchoverNeedsACertificate(t *testing.T) {
	namespace, err := cluster.Namespace("node2")
	if err != nil {
		t.Fatal(err)
	}
	place := traffic.Place{Namespace: namespace}
	address := netip.AddrPortFrom(cluster.NodeIPs("node1")[0], switchoverPort).String()
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		conn, err := place.Dial(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(patience(5 * time.Second))); err != nil {
			return err
		}
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // that is the point
		if err := client.HandshakeContext(ctx); err != nil {
			return nil //nolint:nilerr // refused
		}
		_, err = client.Read(make([]byte, 1)) // TLS 1.3 tells a client only then
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the agent talks with somebody without a certificate (%v)", err)
		}
		return nil
	})
}

// asJSON tells what %+v does not: what pointers point at.
func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
