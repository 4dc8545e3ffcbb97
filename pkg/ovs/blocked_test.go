package ovs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// TestWaitBlocked adds flows as ovn-controller does, one after another; only the last one blocks the port.
func TestWaitBlocked(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	of := map[string]int{}
	for _, name := range []string{"gw1", "gw2"} {
		addLink(t, host, name)
		p := podPort(name, "c-"+name)
		p.ID = ident.PodPort("ns", name, ident.DefaultNetwork)
		if err := c.EnsurePort(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		of[name] = ofport(t, c, name)
	}
	result := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { result <- c.WaitBlocked(ctx, "gw1") }()
	for _, f := range []string{
		fmt.Sprintf("table=0,priority=100,in_port=%d,actions=resubmit(,8)", of["gw1"]),
		fmt.Sprintf("table=0,priority=1010,rarp,in_port=%d,actions=resubmit(,8)", of["gw1"]),
		fmt.Sprintf("table=0,priority=1000,in_port=%d,actions=drop", of["gw2"]),
		fmt.Sprintf("table=0,priority=1000,ip,in_port=%d,actions=drop", of["gw1"]),
		fmt.Sprintf("table=0,priority=100,tcp,in_port=%d,actions=drop", of["gw1"]),
		fmt.Sprintf("table=1,priority=1000,in_port=%d,actions=drop", of["gw1"]),
	} {
		host.AddFlow(t, ident.IntegrationBridge, f)
	}
	select {
	case err := <-result:
		t.Fatalf("the port is not blocked, and the wait ended with %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	host.AddFlow(t, ident.IntegrationBridge, fmt.Sprintf("table=0,priority=1000,in_port=%d,actions=drop", of["gw1"]))
	if err := <-result; err != nil {
		t.Errorf("wait for a flow that was added: %v", err)
	}
	if err := c.WaitBlocked(ctx, "gw1"); err != nil {
		t.Errorf("wait for a flow that is there: %v", err)
	}
	if err := c.WaitBlocked(ctx, "gw3"); !errors.Is(err, ErrNoPort) {
		t.Errorf("wait for a port that does not exist: %v, want ErrNoPort", err)
	}
	host.DeleteFlows(t, ident.IntegrationBridge)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.WaitBlocked(short, "gw1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a flow that does not come: %v, want DeadlineExceeded", err)
	}
}

// TestWatchOpened tells of a port that is blocked when it is asked, opened, blocked anew, and opened again.
func TestWatchOpened(t *testing.T) {
	c, host := connect(t)
	if err := c.EnsureBridge(t.Context(), DatapathNetdev); err != nil {
		t.Fatal(err)
	}
	addLink(t, host, "gw1")
	if err := c.EnsurePort(t.Context(), podPort("gw1", "c-gw1")); err != nil {
		t.Fatal(err)
	}
	block := fmt.Sprintf("table=0,priority=1000,in_port=%d,actions=drop", ofport(t, c, "gw1"))
	host.AddFlow(t, ident.IntegrationBridge, block)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told, ended := make(chan time.Time), make(chan error, 1)
	go func() { ended <- c.WatchOpened(ctx, "gw1", func(at time.Time) { told <- at }) }()
	next := func() time.Time {
		t.Helper()
		select {
		case at := <-told:
			return at
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Minute):
			t.Fatal("nothing is told")
		}
		return time.Time{}
	}
	for range 2 {
		if at := next(); !at.IsZero() {
			t.Errorf("a port that is blocked was opened at %s", at)
		}
		before := time.Now()
		host.DeleteFlows(t, ident.IntegrationBridge)
		if at := next(); at.Before(before) || at.After(time.Now()) {
			t.Errorf("a port that was opened after %s was so at %s", before, at)
		}
		host.AddFlow(t, ident.IntegrationBridge, block)
	}
	if at := next(); !at.IsZero() {
		t.Errorf("a port that is blocked was opened at %s", at)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
}

func ofport(t *testing.T, c *Client, name string) int {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		p, err := c.Port(t.Context(), name)
		if err == nil && p.Ofport > 0 {
			return p.Ofport
		}
		if time.Now().After(deadline) {
			t.Fatalf("interface %s: %+v (%v)", name, p, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// FuzzFlowUpdates: whatever a bridge says is read or refused.
func FuzzFlowUpdates(f *testing.F) {
	reply := make([]byte, 8, 64)
	flow := make([]byte, 40)
	binary.BigEndian.PutUint16(flow, 40)
	binary.BigEndian.PutUint16(flow[10:], blockPriority)
	binary.BigEndian.PutUint16(flow[24:], 1)
	binary.BigEndian.PutUint16(flow[26:], 12)
	binary.BigEndian.PutUint32(flow[28:], oxmInPort)
	binary.BigEndian.PutUint32(flow[32:], 7)
	whole := slices.Concat(reply, flow)
	f.Add(whole)
	f.Add(whole[:47])
	f.Add(whole[:8])
	f.Add([]byte{0, 16})
	f.Fuzz(func(t *testing.T, b []byte) {
		flows, err := flowUpdates(b)
		if err == nil && len(flows) > len(b)/8 {
			t.Errorf("%d flows in %d bytes", len(flows), len(b))
		}
		if string(b) == string(whole) && (err != nil || len(flows) != 1 || !flows[0].drops || flows[0].priority != blockPriority || !flows[0].isInPort(7)) {
			t.Errorf("read %+v (%v)", flows, err)
		}
	})
}
