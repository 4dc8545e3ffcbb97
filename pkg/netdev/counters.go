package netdev

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Counters are what a link has counted since it was made, as the host sees it: what the pod behind a veth sends, the host's end receives.
type Counters struct {
	RXBytes, RXPackets, RXDropped, RXErrors uint64
	TXBytes, TXPackets, TXDropped, TXErrors uint64
}

// Sent is how many frames a link of the host has sent: what the pod behind a veth was sent.
func (h Host) Sent(name string) (frames uint64, err error) {
	err = h.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("read link %s: %w", name, err)
		}
		if s := link.Attrs().Statistics; s != nil {
			frames = s.TxPackets
		}
		return nil
	})
	return frames, err
}

// Counters reads those of all links of the host, by name: one request to the kernel, however many links there are.
func (h Host) Counters() (map[string]Counters, error) {
	out := map[string]Counters{}
	err := h.do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		for _, l := range links {
			a := l.Attrs()
			if s := a.Statistics; s != nil {
				out[a.Name] = Counters{
					RXBytes: s.RxBytes, RXPackets: s.RxPackets, RXDropped: s.RxDropped, RXErrors: s.RxErrors,
					TXBytes: s.TxBytes, TXPackets: s.TxPackets, TXDropped: s.TxDropped, TXErrors: s.TxErrors,
				}
			}
		}
		return nil
	})
	return out, err
}
