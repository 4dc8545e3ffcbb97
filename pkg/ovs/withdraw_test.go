package ovs

import (
	"errors"
	"testing"
)

func TestWithdraw(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	p := podPort("gw1", "c1")
	addLink(t, host, "gw1")
	if err := c.EnsurePort(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	withdrawn := func(want bool) {
		t.Helper()
		got, err := c.Port(t.Context(), "gw1")
		if err != nil {
			t.Fatal(err)
		}
		row, err := c.PodPorts(t.Context())
		if err != nil || len(row) != 1 {
			t.Fatalf("%d ports (%v)", len(row), err)
		}
		if got.Port != p || got.Withdrawn != want {
			t.Errorf("port %+v, withdrawn %t: want %+v, %t", got.Port, got.Withdrawn, p, want)
		}
	}
	for range 2 {
		if err := c.Withdraw(t.Context(), "gw1"); err != nil {
			t.Fatal(err)
		}
		withdrawn(true)
	}
	for range 2 {
		if err := c.Restore(t.Context(), "gw1"); err != nil {
			t.Fatal(err)
		}
		withdrawn(false)
	}
	// An ADD that is repeated has OVN told of it again.
	if err := errors.Join(c.Withdraw(t.Context(), "gw1"), c.EnsurePort(t.Context(), p)); err != nil {
		t.Fatal(err)
	}
	withdrawn(false)
	if err := c.Withdraw(t.Context(), "gw2"); !errors.Is(err, ErrNoPort) {
		t.Errorf("a port that there is not: %v, want ErrNoPort", err)
	}
}
