package netdev

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Borrowed is an address that the host has for a while, besides its own: it is for packets that the host forwards, and no source of what it sends itself.
type Borrowed struct {
	Link string
	Addr netip.Addr
}

// borrowedFlags mark a borrowed address: a single address that is deprecated and makes no route. The kernel sets the first by itself where nobody may prefer an address.
const borrowedFlags = unix.IFA_F_DEPRECATED | unix.IFA_F_NOPREFIXROUTE

// ErrLoanTooShort means that an address was to be borrowed for less than ShortestLoan.
var ErrLoanTooShort = errors.New("an address cannot be borrowed for less than a second")

// ShortestLoan is for how long an address can be borrowed at least: the kernel counts whole seconds, and none of them is for ever.
const ShortestLoan = time.Second

// SyncBorrowed makes want exactly the host's borrowed addresses, and lets each of them live for so long: the kernel takes it away unless it is borrowed again before, whatever
// becomes of this process. Whole seconds count. It returns those that the host did not have.
func (h Host) SyncBorrowed(want []Borrowed, life time.Duration) (added []Borrowed, err error) {
	err = h.do(func() error {
		have, err := listBorrowed()
		if err != nil {
			return err
		}
		for b, a := range have {
			if !slices.Contains(want, b) {
				if err := dropBorrowed(b, a); err != nil {
					return err
				}
			}
		}
		for _, b := range want {
			if err := borrow(b, life); err != nil {
				return err
			}
			if have[b] == nil {
				added = append(added, b)
			}
		}
		return nil
	})
	return added, err
}

// Borrowed lists the host's borrowed addresses.
func (h Host) Borrowed() (out []Borrowed, err error) {
	err = h.do(func() error {
		have, err := listBorrowed()
		for b := range have {
			out = append(out, b)
		}
		return err
	})
	return out, err
}

func listBorrowed() (map[Borrowed]*netlink.Addr, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[Borrowed]*netlink.Addr{}
	for i := range list {
		b, ok, err := borrowed(&list[i])
		if err != nil {
			return nil, err
		}
		if ok {
			out[b] = &list[i]
		}
	}
	return out, nil
}

// borrowed says whose an address is, ok if it is a borrowed one.
func borrowed(a *netlink.Addr) (b Borrowed, ok bool, err error) {
	p, valid := prefix(a.IPNet)
	if !valid || !p.IsSingleIP() || a.Flags&borrowedFlags != borrowedFlags {
		return b, false, nil
	}
	link, err := netlink.LinkByIndex(a.LinkIndex)
	if isNoLink(err) {
		return b, false, nil // gone since, with its addresses
	}
	if err != nil {
		return b, false, fmt.Errorf("find the link of address %s: %w", p, err)
	}
	return Borrowed{Link: link.Attrs().Name, Addr: p.Addr()}, true, nil
}

func dropBorrowed(b Borrowed, a *netlink.Addr) error {
	link, err := netlink.LinkByIndex(a.LinkIndex)
	if err == nil {
		err = netlink.AddrDel(link, &netlink.Addr{IPNet: a.IPNet, Scope: a.Scope})
	}
	if err != nil && !isNoLink(err) && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s from %s: %w", b.Addr, b.Link, err)
	}
	return nil
}

func borrow(b Borrowed, life time.Duration) error {
	if life < ShortestLoan {
		return fmt.Errorf("add address %s to %s for %s: %w", b.Addr, b.Link, life, ErrLoanTooShort)
	}
	link, err := netlink.LinkByName(b.Link)
	if err != nil {
		return fmt.Errorf("find link %s for address %s: %w", b.Link, b.Addr, err)
	}
	a := address(netip.PrefixFrom(b.Addr, b.Addr.BitLen()))
	a.Flags, a.ValidLft = unix.IFA_F_NOPREFIXROUTE, int(min(math.Ceil(life.Seconds()), math.MaxUint32-1))
	if b.Addr.Is6() {
		a.Flags |= unix.IFA_F_NODAD // who else had it has lost it by now
	} else {
		a.Scope = unix.RT_SCOPE_LINK
	}
	if err := netlink.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address %s to %s: %w", b.Addr, b.Link, err)
	}
	return nil
}
