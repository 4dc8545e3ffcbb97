package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/test/kernel/control"
)

// handOffLimit is more than any zone of the tests has.
const handOffLimit = 1 << 20

// place is a zone of a network namespace.
type place struct {
	*conntrack.Table
	zone conntrack.Zone
}

// openPlace opens the table of a named network namespace.
func openPlace(netns, zone string) (place, error) {
	number, err := strconv.ParseUint(zone, 10, 16)
	if err != nil {
		return place{}, fmt.Errorf("zone %q: %w", zone, err)
	}
	p := place{zone: conntrack.Zone(number)}
	return p, netdev.InNetns(filepath.Join(control.NamespaceDir, netns), func() (err error) {
		p.Table, err = conntrack.Open()
		return err
	})
}

func (p place) dump(ctx context.Context) (conntrack.Dumped, error) {
	return p.Dump(ctx, conntrack.Query{Zones: []conntrack.Zone{p.zone}, Limit: handOffLimit})
}

// pass is what one pass of a hand-off did, as it is printed: a JSON object a line.
type pass struct {
	Dumped, Due, Messages, Bytes int
	Left                         map[conntrack.Reason]int
	conntrack.Result
	// Error is Result's.
	Error string
	// DumpTook and UpsertTook are in milliseconds, the wire form is in neither.
	DumpTook, UpsertTook int64
	// PeakKiB is the most memory that this process has had.
	PeakKiB int
}

// handOff moves a zone's entries to another, in so many passes.
func handOff(ctx context.Context, from, to place, passes int) error {
	var told conntrack.Passes
	for range passes {
		p, err := onePass(ctx, &told, from, to)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(p); err != nil {
			return err
		}
	}
	return nil
}

func onePass(ctx context.Context, told *conntrack.Passes, from, to place) (p pass, err error) {
	start := time.Now()
	dumped, err := from.dump(ctx)
	if err != nil {
		return p, err
	}
	p.DumpTook = time.Since(start).Milliseconds()
	due := told.Due(dumped.Entries[from.zone], start)
	p.Dumped, p.Due, p.Left, p.Refused = len(dumped.Entries[from.zone]), len(due), dumped.Left, map[conntrack.Reason]int{}
	messages, err := conntrack.Encode(due)
	if err != nil {
		return p, err
	}
	var upserts time.Duration
	for _, m := range messages {
		p.Messages++
		p.Bytes += len(m)
		entries, err := conntrack.Decode(m)
		if err != nil {
			return p, err
		}
		start := time.Now()
		r, err := to.Upsert(ctx, to.zone, entries)
		if err != nil {
			return p, err
		}
		upserts += time.Since(start)
		p.add(r)
	}
	p.UpsertTook = upserts.Milliseconds()
	p.PeakKiB, err = peak()
	return p, err
}

func (p *pass) add(r conntrack.Result) {
	p.Made += r.Made
	p.Renewed += r.Renewed
	p.Replaced += r.Replaced
	p.Unlabelled += r.Unlabelled
	for reason, n := range r.Refused {
		p.Refused[reason] += n
	}
	if r.Why != nil && p.Error == "" {
		p.Error = r.Why.Error()
	}
}

// peak is the most memory that this process has had, in KiB.
func peak() (kib int, err error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b), "VmHWM:")
	if !ok {
		return 0, errors.New("/proc/self/status does not say VmHWM")
	}
	_, err = fmt.Sscan(rest, &kib)
	return kib, err
}

// printEntries prints a zone's entries, a JSON object a line.
func printEntries(ctx context.Context, p place) error {
	d, err := p.dump(ctx)
	for _, e := range d.Entries[p.zone] {
		err = errors.Join(err, json.NewEncoder(os.Stdout).Encode(e))
	}
	return err
}

// mislead puts into a zone what it would learn of another's connections from their replies alone. ICMP is left out.
func mislead(ctx context.Context, from, to place) error {
	d, err := from.dump(ctx)
	if err != nil {
		return err
	}
	var wrong []conntrack.Entry
	for _, e := range d.Entries[from.zone] {
		if e.Orig.Type != 0 || e.Reply.Type != 0 {
			continue
		}
		e.Orig = e.Reply
		e.Reply = conntrack.Tuple{Src: e.Orig.Dst, Dst: e.Orig.Src, SrcPort: e.Orig.DstPort, DstPort: e.Orig.SrcPort}
		e.Status, e.Mark = 0, 0
		wrong = append(wrong, e)
	}
	r, err := to.Upsert(ctx, to.zone, wrong)
	if err == nil {
		fmt.Println(r.Made)
	}
	return err
}

// fill puts so many connections to an address into a zone, each over TCP through a load balancer.
func fill(ctx context.Context, p place, number int, to netip.Addr) error {
	var entries []conntrack.Entry
	for i := range number {
		e := conntrack.Entry{
			Protocol: conntrack.TCP, Status: conntrack.SeenReply | conntrack.Assured, Timeout: time.Hour, Mark: 2,
			TCP:  conntrack.TCPState{State: 3, Scales: [2]uint8{7, 7}, Flags: [2]uint8{3, 3}},
			Orig: conntrack.Tuple{Src: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Dst: netip.MustParseAddr("10.96.0.10"), SrcPort: uint16(32768 + i/1000), DstPort: 80},
		}
		e.Reply = conntrack.Tuple{Src: to, Dst: e.Orig.Src, SrcPort: 8080, DstPort: e.Orig.SrcPort}
		entries = append(entries, e)
	}
	r, err := p.Upsert(ctx, p.zone, entries)
	if err == nil && r.Made+r.Renewed != number { // some may be there from an earlier time
		r.New = nil // too many for an error
		err = fmt.Errorf("%+v, want %d made or renewed", r, number)
	}
	return err
}

// doZones are the commands about zones.
func doZones(ctx context.Context, args []string) error {
	var places []place
	rest := args[1:]
	for len(rest) > 1 && len(places) < map[string]int{"handoff": 2, "mislead": 2, "entries": 1, "fill": 1}[args[0]] {
		p, err := openPlace(rest[0], rest[1])
		if err != nil {
			return err
		}
		defer func() { _ = p.Close() }()
		places, rest = append(places, p), rest[2:]
	}
	number := 1
	var to netip.Addr
	var nerr, terr error
	if len(rest) > 0 {
		number, nerr = strconv.Atoi(rest[0])
	}
	if len(rest) > 1 {
		to, terr = netip.ParseAddr(rest[1])
	}
	if err := errors.Join(nerr, terr); err != nil {
		return err
	}
	switch {
	case args[0] == "handoff" && len(places) == 2 && len(rest) <= 1:
		return handOff(ctx, places[0], places[1], number)
	case args[0] == "mislead" && len(places) == 2 && len(rest) == 0:
		return mislead(ctx, places[0], places[1])
	case args[0] == "entries" && len(places) == 1 && len(rest) == 0:
		return printEntries(ctx, places[0])
	case args[0] == "fill" && len(places) == 1 && len(rest) == 2:
		return fill(ctx, places[0], number, to)
	}
	return errUsage
}
