package guest_test

import (
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
	console, err := one.Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = console.Close() })

	target := func() *pod {
		t.Helper()
		p := w.pod(t)
		if _, err := p.Plumb(t.Context(), []guest.NIC{{Name: "default", MAC: nics[0].MAC}}); err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("LateFailure", func(t *testing.T) { lateFailure(t, one, target()); wantEcho(t, conn, "after a failure") })
	two := target()
	t.Run("PreCopy", func(t *testing.T) { preCopy(t, w, one, two); wantEcho(t, conn, "after a migration") })
	three := target()
	t.Run("PostCopy", func(t *testing.T) { postCopy(t, two, three); wantEcho(t, conn, "after post-copy") })
	if err := three.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	three.await(t, 0, guest.Off)
	three.wantStatus(t, 0)
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

func lateFailure(t *testing.T, from, to *pod) {
	migrate(t, from, to, guest.Incoming{FailStatus: 1}, guest.Migration{HoldBeforeSwitchover: true})
	held := from.await(t, 0, guest.MigrationChanged, guest.PreSwitchover)
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
	if stop <= 0 || stop > time.Second {
		t.Errorf("the guest stood still for %s, want less than a second", stop)
	}
	wantState(t, from, guest.Migrated)
	wantState(t, to, guest.Running)
	time.Sleep(time.Until(resumed.At().Add(1200 * time.Millisecond))) // QEMU's fifth announcement leaves after about 800 ms
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
