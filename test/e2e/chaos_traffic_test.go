package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// watch begins traffic to the VM.
func (c *cell) watch(t *testing.T) {
	t.Helper()
	spec := company(c.vm.ips)
	spec.Silence = traffic.Duration{Duration: time.Minute}
	run, err := traffic.Begin(t.Context(), podPlace(t, c.from), spec)
	if err != nil {
		t.Fatal(err)
	}
	c.traffic = run
	c.patient = c.listen(t.Context())
	begun(t, c.vm, run)
}

// stalled is for how long nothing could come from the VM: QEMU had stopped it, or what was struck is needed for it to answer.
func (c *cell) stalled(t *testing.T) time.Duration {
	t.Helper()
	entries, err := c.journal()
	if err != nil {
		t.Fatal(err)
	}
	var from, resumed time.Time
	var d time.Duration
	for _, e := range entries {
		switch {
		case e.Event == string(guest.Stopped) && from.IsZero():
			from = e.Time
		case e.Event == string(guest.Resumed):
			resumed = e.Time
		}
	}
	if !from.IsZero() {
		d = max(0, resumed.Sub(from))
	}
	if c.silent > 0 {
		if from.IsZero() || c.struck.Before(from) {
			from = c.struck
		}
		d = max(d, c.struck.Add(c.outage+c.silent).Sub(from))
	}
	return d
}

// listen notes how long nothing is heard of the VM. What it returns waits until everybody who sent something meanwhile has tried again: a TCP sender that got no
// answer for some time may wait as long again, and about its first time-out.
func (c *cell) listen(ctx context.Context) (patient func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan time.Time, 1)
	go func() {
		until, heard, at := time.Now(), 0, time.Now()
		for ctx.Err() == nil {
			if now := c.traffic.Status().Replied; now != heard {
				if again := time.Now().Add(time.Since(at)); again.After(until) {
					until = again
				}
				heard, at = now, time.Now()
			}
			time.Sleep(20 * time.Millisecond)
		}
		done <- until
	}()
	return func() {
		time.Sleep(patience(500 * time.Millisecond))
		cancel()
		time.Sleep(time.Until((<-done).Add(time.Second)))
	}
}

// stop ends the traffic, and looks at what became of it.
func (c *cell) stop(t *testing.T) {
	t.Helper()
	stall := c.stalled(t)
	c.patient()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	result, err := c.traffic.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if c.ends == died {
		return
	}
	for _, k := range result.Connections {
		if k.Broken != "" && !c.rewound {
			t.Errorf("VM %s: a connection broke: %+v", c.vm, k)
		}
	}
	for _, p := range result.Probes {
		t.Logf("from %s to %s: %d probes, %d lost, %d duplicated, longest gap %s; the VM could not answer for %s", c.from.Name, p.Peer, p.Counts.Sent, p.Counts.Lost,
			p.Counts.Duplicated, p.Gap.Length().Round(time.Millisecond), stall.Round(time.Millisecond))
		if limit := stall + patience(promptly); p.Gap.Length() > limit && c.run == nil {
			t.Errorf("nothing came from %s for %s, want at most %s", p.Peer, p.Gap.Length(), limit)
		}
	}
	control := netip.AddrPortFrom(c.vm.ips[0], traffic.ControlPort)
	arrivals, err := traffic.NewClient(podPlace(t, c.from), control).Arrivals(ctx, result.Run)
	if err != nil {
		t.Fatal(err)
	}
	once(t, c.vm.VM, result, arrivals)
}
