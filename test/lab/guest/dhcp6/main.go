// Command dhcp6 is the guest's DHCPv6 client, which busybox lacks: it gives a link the addresses that a server on it has for the link's MAC address, as /128 (the
// network's prefix and routes come by router advertisements), and renews them.
//
//	dhcp6 LINK
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// answerTimeout is how long the first server may take; each further try waits twice as long, up to maxPause between them.
	answerTimeout = time.Second
	firstPause    = 500 * time.Millisecond
	maxPause      = time.Minute
	resolvConf    = "/etc/resolv.conf"
)

func main() { os.Exit(run()) } //nolint:forbidigo // main

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) //nolint:forbidigo // main
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dhcp6 LINK")
		return 2
	}
	link := os.Args[1]
	for pause := firstPause; ; {
		renew, err := lease(ctx, link)
		switch {
		case err == nil && renew == 0:
			return 0
		case err == nil:
			pause = firstPause
		default:
			// A network without such a server is not worth a line.
			renew, pause = pause, min(2*pause, maxPause)
		}
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(renew):
		}
	}
}

// lease asks once and applies the answer. renew is when to ask again, 0 for never.
func lease(ctx context.Context, name string) (renew time.Duration, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	client, err := nclient6.New(name, nclient6.WithTimeout(answerTimeout), nclient6.WithRetry(1))
	if err != nil {
		return 0, fmt.Errorf("open a socket on %s: %w", name, err) // it has no link-local address yet
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	// The same after every boot: it names the client to the server.
	id := dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: link.Attrs().HardwareAddr})
	offer, err := client.Solicit(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("solicit on %s: %w", name, err)
	}
	reply, err := client.Request(ctx, offer, id)
	if err != nil {
		return 0, fmt.Errorf("request on %s: %w", name, err)
	}
	ia := reply.Options.OneIANA()
	if ia == nil || len(ia.Options.Addresses()) == 0 {
		return 0, fmt.Errorf("the server on %s has no address for %s", name, link.Attrs().HardwareAddr)
	}
	const infinite = (1<<32 - 1) * time.Second
	for _, a := range ia.Options.Addresses() {
		if err := apply(link, a); err != nil {
			return 0, err
		}
		if a.ValidLifetime < infinite && (renew == 0 || a.ValidLifetime/2 < renew) {
			renew = max(a.ValidLifetime/2, time.Second)
		}
		fmt.Printf("lab: %s has %s by DHCPv6, valid %s, dns %v\n", name, a.IPv6Addr, a.ValidLifetime, reply.Options.DNS())
	}
	return renew, addServers(reply.Options.DNS())
}

func apply(link netlink.Link, a *dhcpv6.OptIAAddress) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.IPv6Addr, Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}
	if a.ValidLifetime.Seconds() < 1<<31 {
		addr.ValidLft, addr.PreferedLft = int(a.ValidLifetime.Seconds()), int(a.PreferredLifetime.Seconds())
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("give %s address %s: %w", link.Attrs().Name, a.IPv6Addr, err)
	}
	return nil
}

// addServers adds name servers to those that DHCPv4 gave.
func addServers(servers []net.IP) error {
	have, err := os.ReadFile(resolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the resolver configuration: %w", err)
	}
	text := string(have)
	for _, s := range servers {
		if line := "nameserver " + s.String() + "\n"; !strings.Contains(text, line) {
			text += line
		}
	}
	if err := os.WriteFile(resolvConf, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the resolver configuration: %w", err)
	}
	return nil
}
