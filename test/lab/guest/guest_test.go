package guest_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

const etherRARP = 0x8035

var (
	domain = guest.Domain{Name: "test_vm", Hostname: "vm", UUID: "5d307ca9-b3ef-428c-8861-06e72d69f223"}
	echo   = podIP.Addr().String() + ":7"
)

// TestLiveMigration moves a guest between two launchers on a bridge that stands in for the network: late failure, a migration, and back by post-copy.
func TestLiveMigration(t *testing.T) {
	w := newWorld(t)
	one := w.pod(t)
	nics, err := one.Plumb(t.Context(), []guest.NIC{{Name: "default"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(nics) != 1 || nics[0].MAC != podMAC.String() || !nics[0].DHCP || nics[0].MTU != podMTU || len(nics[0].Addresses) != 1 || nics[0].Addresses[0] != podIP {
		t.Errorf("plumbed %+v, want the pod's MAC address %s, %s, MTU %d and DHCP", nics, podMAC, podIP, podMTU)
	}
	start := time.Now()
	if err := one.Start(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	conn := w.dial(t, echo)
	t.Logf("the guest answers %s after its start", time.Since(start).Round(time.Millisecond))
	wantEcho(t, conn, "booted")
	one.await(t, 0, guest.Leased)

	target := func() *pod {
		t.Helper()
		p := w.pod(t)
		if _, err := p.Plumb(t.Context(), []guest.NIC{{Name: "default", MAC: nics[0].MAC}}); err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("Console", func(t *testing.T) { useConsole(t, one) })
	t.Run("PauseAndFreeze", func(t *testing.T) { pauseAndFreeze(t, one); wantEcho(t, conn, "after a pause") })
	t.Run("Cancel", func(t *testing.T) { cancelled(t, one, target()); wantEcho(t, conn, "after a cancelled migration") })
	t.Run("LateFailure", func(t *testing.T) { lateFailure(t, one, target()); wantEcho(t, conn, "after a failure") })
	t.Run("HeldTarget", func(t *testing.T) { heldTarget(t, one, target()); wantEcho(t, conn, "after the target's end") })
	t.Run("KillOn", func(t *testing.T) {
		killOn(t, one, target())
		wantEcho(t, conn, "after a target that fails when it has loaded")
	})
	two := target()
	t.Run("PreCopy", func(t *testing.T) { preCopy(t, w, one, two); wantEcho(t, conn, "after a migration") })
	three := target()
	t.Run("PostCopy", func(t *testing.T) { postCopy(t, two, three); wantEcho(t, conn, "after post-copy") })
	t.Run("Shutdown", func(t *testing.T) {
		if err := three.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		three.await(t, 0, guest.Off)
		three.wantStatus(t, 0)
	})
}

// migrate connects two launchers and starts a migration between them.
func migrate(t *testing.T, from, to *pod, in guest.Incoming, m guest.Migration) *guest.Relay {
	t.Helper()
	if err := to.Incoming(t.Context(), domain, in); err != nil {
		t.Fatal(err)
	}
	relay, err := guest.NewRelay(t.Context(), from.Dir(), to.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := relay.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := from.Migrate(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return relay
}

func useConsole(t *testing.T, p *pod) {
	console, err := p.Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The sum is made by the guest: the line itself comes back as an echo of what is typed.
	if _, err := console.Write([]byte("hostname; echo sum $((40 + 2))\n")); err != nil {
		t.Fatal(err)
	}
	timeout := time.AfterFunc(time.Minute, func() { _ = console.Close() })
	defer timeout.Stop()
	var seen string
	for buf := make([]byte, 4096); !strings.Contains(seen, "sum 42"); {
		n, err := console.Read(buf)
		seen += string(buf[:n])
		if err != nil {
			t.Fatalf("the console ends with %v and showed %q, want sum 42", err, seen)
		}
	}
	for _, want := range []string{domain.Hostname + " is up", podIP.String()} {
		if !strings.Contains(seen, want) {
			t.Errorf("the console showed %q, want %q in it", seen, want)
		}
	}
	if err := console.Close(); err != nil {
		t.Error(err)
	}
}

func pauseAndFreeze(t *testing.T, p *pod) {
	before := p.last(t)
	for _, step := range []struct {
		do   func(context.Context) error
		want guest.State
	}{{p.Pause, guest.Paused}, {p.Resume, guest.Running}, {p.Freeze, guest.Running}} {
		if err := step.do(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantState(t, p, step.want)
	}
	if s, err := p.Status(t.Context()); err != nil || s.QEMU != "" {
		t.Errorf("a frozen QEMU: status %+v, %v: want no word from QEMU", s, err)
	}
	if err := p.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopped := p.await(t, before, guest.Stopped)
	p.await(t, stopped.Seq, guest.Resumed)
}

func cancelled(t *testing.T, from, to *pod) {
	before := from.last(t)
	migrate(t, from, to, guest.Incoming{}, guest.Migration{Bandwidth: 1 << 20})
	from.await(t, before, guest.MigrationChanged, guest.Active)
	if err := from.CancelMigration(t.Context()); err != nil {
		t.Fatal(err)
	}
	from.await(t, before, guest.MigrationChanged, guest.Cancelled)
	to.wantStatus(t, 0) // FailStatus
	wantState(t, from, guest.Running)
	if s, err := from.Status(t.Context()); err != nil || s.Migration == nil || s.Migration.Status != guest.Cancelled {
		t.Errorf("status %+v, %v: want a migration that is %s", s, err, guest.Cancelled)
	}
}

// heldTarget has everything arrive at a target that does not go on, and the source take the VM back.
func heldTarget(t *testing.T, from, to *pod) {
	before := from.last(t)
	migrate(t, from, to, guest.Incoming{HoldResume: true, FailStatus: 1}, guest.Migration{})
	from.await(t, before, guest.MigrationChanged, guest.Completed)
	to.await(t, 0, guest.MigrationChanged, guest.Completed)
	wantState(t, from, guest.Migrated)
	wantState(t, to, guest.Paused)
	if err := to.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	to.wantStatus(t, 1)
	if err := from.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantState(t, from, guest.Running)
}

// killOn has the target's QEMU die at the moment when it has taken over. The source cannot know, and is told to go on by whoever does.
func killOn(t *testing.T, from, to *pod) {
	before := from.last(t)
	migrate(t, from, to, guest.Incoming{KillOn: guest.Resumed, FailStatus: 1}, guest.Migration{})
	end := from.await(t, before, guest.MigrationChanged, guest.Completed, guest.Failed)
	to.wantStatus(t, 1)
	if end.Status == guest.Completed {
		wantState(t, from, guest.Migrated)
		if err := from.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	from.await(t, before, guest.Resumed)
	wantState(t, from, guest.Running)
}

func lateFailure(t *testing.T, from, to *pod) {
	before := from.last(t)
	migrate(t, from, to, guest.Incoming{FailStatus: 1}, guest.Migration{HoldBeforeSwitchover: true})
	held := from.await(t, before, guest.MigrationChanged, guest.PreSwitchover)
	if err := to.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	to.wantStatus(t, 1)
	if err := from.ContinueMigration(t.Context()); err != nil {
		t.Logf("continue: %v", err) // QEMU may have noticed before
	}
	from.await(t, held.Seq, guest.MigrationChanged, guest.Failed)
	from.await(t, held.Seq, guest.Resumed)
	wantState(t, from, guest.Running)
}

// stopLongest is for how long QEMU may stop a guest, on a slow machine: on an idle one it is a few milliseconds.
const stopLongest = 10 * time.Second

func preCopy(t *testing.T, w *world, from, to *pod) {
	rarps := w.sniff(t, to.port, etherRARP)
	before := from.last(t)
	relay := migrate(t, from, to, guest.Incoming{}, guest.Migration{})
	stopped := from.await(t, before, guest.Stopped)
	from.await(t, before, guest.MigrationChanged, guest.Completed)
	resumed := to.await(t, 0, guest.Resumed)
	status, err := from.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop := resumed.At().Sub(stopped.At())
	t.Logf("the guest stood still for %s; by QEMU's account: %+v; %d bytes", stop, status.Migration, relay.Bytes())
	if m := status.Migration; m == nil || m.Status != guest.Completed || m.Total <= 0 || m.Downtime <= 0 {
		t.Errorf("QEMU's account is %+v, want a completed migration with its times", m)
	}
	if stop <= 0 || stop > stopLongest {
		t.Errorf("the guest stood still for %s, want less than %s", stop, stopLongest)
	}
	wantState(t, from, guest.Migrated)
	wantState(t, to, guest.Running)
	time.Sleep(time.Until(resumed.At().Add(3 * time.Second))) // QEMU's fifth announcement leaves after about 800 ms, on a machine that has time for it
	frames := rarps()
	for _, f := range frames {
		t.Logf("RARP from %s %s after the resume", f.src, f.at.Sub(resumed.At()).Round(time.Millisecond))
		if f.src.String() != podMAC.String() {
			t.Errorf("a RARP from %s left the pod, want only %s's", f.src, podMAC)
		}
	}
	if len(frames) != 5 {
		t.Errorf("%d RARPs left the target's pod, want 5", len(frames))
	}
	if err := from.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	from.wantStatus(t, 0)
}

func postCopy(t *testing.T, from, to *pod) {
	before := from.last(t)
	// Slow enough that there is something left to switch.
	migrate(t, from, to, guest.Incoming{PostCopy: true}, guest.Migration{PostCopy: true, Bandwidth: 5 << 20})
	from.await(t, before, guest.MigrationChanged, guest.Active)
	if err := from.StartPostCopy(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopped := from.await(t, before, guest.Stopped)
	resumed := to.await(t, 0, guest.Resumed)
	from.await(t, before, guest.MigrationChanged, guest.Completed)
	t.Logf("the guest stood still for %s", resumed.At().Sub(stopped.At()))
	if err := from.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	from.wantStatus(t, 0)
}

// TestLostPostCopy cuts the network while the guest's memory is on both sides: it has nowhere to go on, and both ends wait.
func TestLostPostCopy(t *testing.T) {
	w := newWorld(t)
	one, two := w.pod(t), w.pod(t)
	for _, p := range []*pod{one, two} {
		if _, err := p.Plumb(t.Context(), []guest.NIC{{Name: "default"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.Start(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	one.await(t, 0, guest.Leased)
	relay := migrate(t, one, two, guest.Incoming{PostCopy: true}, guest.Migration{PostCopy: true, Bandwidth: 5 << 20, PostCopyBandwidth: 1 << 20})
	one.await(t, 0, guest.MigrationChanged, guest.Active)
	if err := one.StartPostCopy(t.Context()); err != nil {
		t.Fatal(err)
	}
	two.await(t, 0, guest.Resumed)
	relay.Cut()
	for _, p := range []*pod{one, two} {
		p.await(t, 0, guest.MigrationChanged, guest.PostCopyPaused)
		if err := p.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.wantStatus(t, 1)
	}
}

func wantState(t *testing.T, p *pod, want guest.State) {
	t.Helper()
	s, err := p.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.State != want {
		t.Errorf("%s is %s (%+v), want %s", p.port, s.State, s, want)
	}
}
