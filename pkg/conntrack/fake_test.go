package conntrack

import (
	"context"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// fake is a table that answers requests as Linux 6.1 does, as far as this package asks.
type fake struct {
	entries []found
	ids     uint32
	limit   uint32
	// unlabelled: nothing in the namespace uses labels.
	unlabelled bool
	// before is called before each request: what happens meanwhile.
	before func(command uint8)
	// asked counts requests by their command.
	asked map[uint8]int
	// dumped are messages that a dump has before those of the table.
	dumped [][]byte
	// filters: a dump is of one zone, as since Linux 6.8. dumps are counted.
	filters bool
	dumps   int
}

func newFake() (*fake, *Table) {
	f := &fake{asked: map[uint8]int{}}
	return f, &Table{kernel: f, close: func() error { return nil }}
}

func (f *fake) add(e Entry) {
	f.ids++
	f.entries = append(f.entries, found{Entry: e, id: f.ids})
}

// zone are the entries of one, without IDs.
func (f *fake) zone(z Zone) []Entry {
	var out []Entry
	for _, e := range f.entries {
		if e.Zone == z {
			out = append(out, e.Entry)
		}
	}
	return out
}

// find is the index of the entry that has a tuple in either direction, or -1.
func (f *fake) find(z Zone, p Protocol, t Tuple) int {
	return slices.IndexFunc(f.entries, func(e found) bool { return e.Zone == z && e.Protocol == p && (e.Orig == t || e.Reply == t) })
}

func (f *fake) dump(ctx context.Context, r request, see func([]byte) error) error {
	f.dumps++
	asked, err := read(r)
	if err != nil {
		return err
	}
	messages := slices.Clone(f.dumped)
	for _, e := range f.entries {
		messages = append(messages, asKernel(e))
	}
	for _, m := range messages {
		if z, err := zoneOf(m); f.filters && err == nil && z != asked.Zone {
			continue
		}
		if err := see(m); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *fake) do(ctx context.Context, requests []request) ([]answer, error) {
	var out []answer
	for _, r := range requests {
		if f.before != nil {
			f.before(r.command)
		}
		f.asked[r.command]++
		var a answer
		a.message, a.err = f.one(r)
		out = append(out, a)
	}
	return out, ctx.Err()
}

// asking is a request as the kernel reads it.
type asking struct {
	found
	orig, reply, nat, labels bool
	// the NAT's sides.
	dst, src Tuple
}

func read(r request) (a asking, err error) {
	var zone, seconds uint32
	err = attributes(r.attrs, func(kind uint16, value []byte) (err error) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			a.orig = true
			a.Protocol, err = parseTuple(value, &a.Orig)
		case nl.CTA_TUPLE_REPLY:
			a.reply = true
			_, err = parseTuple(value, &a.Reply)
		case nl.CTA_ZONE:
			var z uint16
			err = number(value, &z)
			zone = uint32(z)
		case nl.CTA_ID:
			err = number(value, &a.id)
		case nl.CTA_STATUS:
			err = number(value, (*uint32)(&a.Status))
		case nl.CTA_TIMEOUT:
			err = number(value, &seconds)
		case nl.CTA_MARK:
			err = number(value, &a.Mark)
		case nl.CTA_LABELS:
			a.labels = true
			copy(a.Labels[:], value)
		case nl.CTA_PROTOINFO:
			err = attributes(value, a.parseState)
		case ctaNATDestination:
			a.nat = true
			err = readNAT(value, &a.dst)
		case ctaNATSource:
			err = readNAT(value, &a.src)
		}
		return err
	})
	a.Zone, a.Timeout = Zone(zone), time.Duration(seconds)*time.Second
	return a, err
}

// readNAT reads a side of NAT whose least is its greatest: another has no place in t.
func readNAT(b []byte, t *Tuple) error {
	return attributes(b, func(kind uint16, value []byte) error {
		switch kind {
		case ctaNATv4MinIP, ctaNATv6MinIP:
			return address(value, &t.Src)
		case ctaNATv4MaxIP, ctaNATv6MaxIP:
			return address(value, &t.Dst)
		case ctaNATProto:
			return attributes(value, func(kind uint16, value []byte) error {
				if kind == ctaNATPortMin {
					return number(value, &t.SrcPort)
				}
				return number(value, &t.DstPort)
			})
		}
		return nil
	})
}

func (f *fake) one(r request) ([]byte, error) {
	if r.command == msgGetStats {
		w := writer{0, 0, 0, 0}
		w.u32(ctaGlobalEntries, uint32(len(f.entries)))
		w.u32(ctaGlobalLimit, f.limit)
		return w, nil
	}
	a, err := read(r)
	if err != nil || !a.orig {
		return nil, unix.EINVAL // a DELETE of everything
	}
	at := f.find(a.Zone, a.Protocol, a.Orig)
	switch {
	case r.command == nl.IPCTNL_MSG_CT_NEW && at < 0:
		return nil, f.create(r, a)
	case at < 0:
		return nil, unix.ENOENT
	case r.command == nl.IPCTNL_MSG_CT_NEW:
		return nil, f.change(r, a, &f.entries[at])
	case r.command == nl.IPCTNL_MSG_CT_DELETE:
		if a.id != f.entries[at].id {
			return nil, unix.ENOENT
		}
		f.entries = slices.Delete(f.entries, at, at+1)
		return nil, nil
	}
	return asKernel(f.entries[at]), nil
}

func (f *fake) create(r request, a asking) error {
	plain, _ := a.Orig.inverse(a.Protocol)
	switch {
	case r.flags&unix.NLM_F_CREATE == 0:
		return unix.ENOENT
	case a.Reply != plain, a.dst.Src != a.dst.Dst, a.src.Src != a.src.Dst, a.dst.SrcPort != a.dst.DstPort, a.src.SrcPort != a.src.DstPort, a.Timeout == 0:
		return unix.EINVAL
	case a.Status&confirmed == 0:
		return unix.EBUSY
	}
	if a.nat {
		a.Reply.Src, a.Reply.Dst = a.dst.Src, a.src.Src
		if a.Protocol.icmp() {
			a.Reply.ID = a.src.SrcPort
		} else {
			a.Reply.SrcPort, a.Reply.DstPort = a.dst.SrcPort, a.src.SrcPort
		}
	}
	if f.find(a.Zone, a.Protocol, a.Reply) >= 0 {
		return unix.EEXIST
	}
	if f.unlabelled {
		a.Labels = Labels{}
	}
	f.add(a.Entry)
	return nil
}

func (f *fake) change(r request, a asking, e *found) error {
	cleared := e.Status &^ a.Status
	switch {
	case r.flags&unix.NLM_F_EXCL != 0:
		return unix.EEXIST
	case a.nat:
		return unix.EOPNOTSUPP
	case cleared&(SeenReply|Assured|confirmed) != 0:
		return unix.EBUSY
	case a.labels && f.unlabelled:
		return unix.ENOSPC
	}
	e.Status, e.Timeout, e.Mark, e.TCP, e.SCTP = e.Status|a.Status, a.Timeout, a.Mark, a.TCP, a.SCTP
	if a.labels {
		e.Labels = a.Labels
	}
	return nil
}
