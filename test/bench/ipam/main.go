// Command ipam measures the address pool at a /12: 1,048,573 pods' addresses given out one by one, taken back and given out again at random, and restored as
// after a restart. A Go map of the same addresses is the baseline.
//
//	make bench-ipam
package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/test/bench/table"
)

func main() { os.Exit(run()) }

func run() int {
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-ipam:", err)
		return 1
	}
	return 0
}

func measure() error {
	spec, err := ipam.ParseSpec([]string{"10.16.0.0/12"}, nil, nil)
	if err != nil {
		return err
	}
	pool := ipam.New(spec)
	_, n := pool.Usage()
	r := table.Report{Title: fmt.Sprintf("Addresses of a /12: %d", n), Unit: "ns each", Columns: []string{"each", "MB"}}
	add := func(name string, f func() error) error {
		before := heap()
		start := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		each := float64(time.Since(start).Nanoseconds()) / float64(n)
		r.Rows = append(r.Rows, table.Row{Name: name, Values: map[string]float64{"each": each, "MB": float64(heap()-before) / 1e6}})
		return nil
	}
	baseline := map[string]netip.Addr{}
	addr := spec.CIDRs[0].Addr()
	err = add("a Go map, filled", func() error {
		for i := range n {
			addr = addr.Next()
			baseline[strconv.FormatInt(i, 10)] = addr
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := add("pool, filled", func() error { return fill(pool, n) }); err != nil {
		return err
	}
	if _, err := pool.Allocate("one too many"); err == nil {
		return fmt.Errorf("a full pool gave an address")
	}
	if err := add("pool full but for one: release one at random, allocate again", func() error { return churn(pool, n) }); err != nil {
		return err
	}
	if err := add("restored after a restart", func() error { return restore(ipam.New(spec), pool, n) }); err != nil {
		return err
	}
	runtime.KeepAlive(baseline)
	if err := r.Print(os.Stdout); err != nil {
		return err
	}
	return r.Save("ipam")
}

func fill(p *ipam.Pool, n int64) error {
	for i := range n {
		if _, err := p.Allocate(strconv.FormatInt(i, 10)); err != nil {
			return err
		}
	}
	return nil
}

// churn releases one at random and allocates again, n times.
func churn(p *ipam.Pool, n int64) error {
	random := rand.New(rand.NewPCG(1, 2))
	for range n {
		owner := strconv.FormatInt(random.Int64N(n), 10)
		p.Release(owner)
		if _, err := p.Allocate(owner); err != nil {
			return err
		}
	}
	return nil
}

// restore claims in a fresh pool what everybody has in another.
func restore(fresh, had *ipam.Pool, n int64) error {
	for i := range n {
		owner := strconv.FormatInt(i, 10)
		if err := fresh.Claim(owner, []netip.Addr{had.Of(owner)[0].Addr()}); err != nil {
			return err
		}
	}
	return nil
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
