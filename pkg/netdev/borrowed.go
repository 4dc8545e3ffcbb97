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

// borrowedFlags mark a borrowed address: a single address that is deprecated, makes no route, and goes away by itself within LongestLoan. The kernel sets the first by itself where
// nobody may prefer an address.
const borrowedFlags = unix.IFA_F_DEPRECATED | unix.IFA_F_NOPREFIXROUTE

// ErrBadLoan means that an address was to be borrowed for less than ShortestLoan or for more than LongestLoan.
var ErrBadLoan = errors.New("an address is borrowed for a second at least and for 15 at most")

// ErrOwnAddress means that an address is on the link, and is not borrowed.
var ErrOwnAddress = errors.New("the link has this address as one of the host's own: remove it there, or choose another")

// For how long an address can be borrowed. The kernel counts whole seconds, and none of them is for ever; what lives for longer somebody else has added.
const (
	ShortestLoan = time.Second
	LongestLoan  = 15 * time.Second
)

// Loans are borrowed addresses.
type Loans struct {
	// On are on the host, as long as was asked for. Added are those of them that it did not have.
	On, Added []Borrowed
}

// SyncBorrowed makes want exactly the host's borrowed addresses, and lets each of them live for so long: the kernel takes it away unless it is borrowed again before, whatever
// becomes of this process. Whole seconds count. The error is about those that are not in On, and about those that could not be removed; none is in the way of the others.
func (h Host) SyncBorrowed(want []Borrowed, life time.Duration) (l Loans, err error) {
	err = h.do(func() error {
		have, own, err := listBorrowed()
		if err != nil {
			return err
		}
		var errs []error
		for b, a := range have {
			if !slices.Contains(want, b) {
				errs = append(errs, dropBorrowed(b, a))
			}
		}
		for _, b := range want {
			err := borrow(b, life, own)
			if errs = append(errs, err); err != nil {
				continue
			}
			if l.On = append(l.On, b); have[b] == nil {
				l.Added = append(l.Added, b)
			}
		}
		return errors.Join(errs...)
	})
	return l, err
}

// Borrowed lists the host's borrowed addresses.
func (h Host) Borrowed() (out []Borrowed, err error) {
	err = h.do(func() error {
		have, _, err := listBorrowed()
		for b := range have {
			out = append(out, b)
		}
		return err
	})
	return out, err
}

// listBorrowed returns the borrowed addresses, and the other ones of the host's links.
func listBorrowed() (have map[Borrowed]*netlink.Addr, own map[Borrowed]bool, err error) {
	list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	have, own = map[Borrowed]*netlink.Addr{}, map[Borrowed]bool{}
	links := map[int]string{}
	for i := range list {
		a := &list[i]
		p, valid := prefix(a.IPNet)
		if !valid {
			continue
		}
		if _, known := links[a.LinkIndex]; !known {
			if links[a.LinkIndex], err = linkName(a.LinkIndex); err != nil {
				return nil, nil, fmt.Errorf("find the link of address %s: %w", p, err)
			}
		}
		switch b := (Borrowed{Link: links[a.LinkIndex], Addr: p.Addr()}); {
		case b.Link == "": // gone since, with its addresses
		case isBorrowed(p, a):
			have[b] = a
		default:
			own[b] = true
		}
	}
	return have, own, nil
}

// isBorrowed: an address that lives for ever is permanent; in its last second one has a lifetime of 0.
func isBorrowed(p netip.Prefix, a *netlink.Addr) bool {
	return p.IsSingleIP() && a.Flags&borrowedFlags == borrowedFlags && a.Flags&unix.IFA_F_PERMANENT == 0 && time.Duration(a.ValidLft)*time.Second <= LongestLoan
}

// linkName is empty if there is no such link.
func linkName(index int) (string, error) {
	link, err := netlink.LinkByIndex(index)
	if isNoLink(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return link.Attrs().Name, nil
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

func borrow(b Borrowed, life time.Duration, own map[Borrowed]bool) error {
	if own[b] {
		return fmt.Errorf("add address %s to %s: %w", b.Addr, b.Link, ErrOwnAddress)
	}
	if life < ShortestLoan || life > LongestLoan {
		return fmt.Errorf("add address %s to %s for %s: %w", b.Addr, b.Link, life, ErrBadLoan)
	}
	link, err := netlink.LinkByName(b.Link)
	if err != nil {
		return fmt.Errorf("find link %s for address %s: %w", b.Link, b.Addr, err)
	}
	a := address(netip.PrefixFrom(b.Addr, b.Addr.BitLen()))
	a.Flags, a.ValidLft = unix.IFA_F_NOPREFIXROUTE, int(math.Ceil(life.Seconds()))
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
