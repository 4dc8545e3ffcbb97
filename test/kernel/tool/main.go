// Command tool does in the virtual machine what no program there does:
//
//	tool rarp LINK              announces the link's MAC address, as QEMU does after a migration
//	tool sctp serve ADDR:PORT   says what it is told, and who told it
//	tool sctp ask ADDR:PORT N   tells N messages, each once the answer to the last has come; without end if N is 0, and slowly
//	tool serve NAME PORT…       answers TCP, UDP and SCTP, and says its name to who asks for it
//	tool probe URL…             asks tcp://, udp:// and sctp:// targets once, each within three seconds, and prints a line for each; URL/name asks for the server's name
//	tool insist URL…            the same one after the other, without end
//	tool monitor DIRECTORY      a monitor of QEMU's in a launcher's volume, which says that a migration has stopped the VM when it gets SIGUSR1
//	tool conntrack ZONE         the connection tracking entries of a zone, a netlink message as hexadecimal digits a line
//	tool table                  all entries of the connection tracking table, a JSON object a line
//	tool entries NETNS ZONE     the same of a network namespace, as package conntrack has them, as JSON
//	tool handoff FROM ZONE TO ZONE [N]   moves the entries of a network namespace's zone to another's, in N passes, and says what came of each
//	tool mislead FROM ZONE TO ZONE       puts into a zone what it would learn of another's connections from their replies alone
//	tool fill NETNS ZONE N ADDR puts N connections through a load balancer to an IPv4 address into a zone
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	"github.com/godwit-cni/godwit/pkg/frame"
)

var errUsage = errors.New("usage: tool rarp LINK | sctp serve ADDR:PORT | sctp ask ADDR:PORT N | serve NAME PORT… | probe URL… | insist URL… | monitor DIRECTORY | conntrack ZONE | table | entries NETNS ZONE | handoff FROM ZONE TO ZONE [N] | mislead FROM ZONE TO ZONE | fill NETNS ZONE N ADDR")

func main() { os.Exit(run()) } //nolint:forbidigo // main

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) //nolint:forbidigo // main
	defer stop()
	if err := do(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		return 1
	}
	return 0
}

func do(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "rarp":
		link, err := net.InterfaceByName(args[1])
		if err != nil {
			return err
		}
		return frame.Send(link.Index, frame.RARP(link.HardwareAddr))
	case len(args) == 2 && args[0] == "conntrack":
		return printZone(args[1])
	case len(args) == 2 && args[0] == "monitor":
		return monitor(ctx, args[1])
	case slices.Equal(args, []string{"table"}):
		return printTable()
	case len(args) == 3 && slices.Equal(args[:2], []string{"sctp", "serve"}):
		at, err := netip.ParseAddrPort(args[2])
		if err != nil {
			return err
		}
		return serveSCTP(at, repeat)
	case len(args) == 4 && slices.Equal(args[:2], []string{"sctp", "ask"}):
		to, perr := netip.ParseAddrPort(args[2])
		n, err := strconv.Atoi(args[3])
		if err := errors.Join(perr, err); err != nil {
			return err
		}
		return ask(to, n)
	case len(args) > 2 && args[0] == "serve":
		return serveAll(ctx, args[1], args[2:])
	case len(args) > 1 && args[0] == "probe":
		return probe(ctx, args[1:])
	case len(args) > 1 && args[0] == "insist":
		return insist(ctx, args[1:])
	case len(args) > 2:
		return doZones(ctx, args)
	}
	return errUsage
}

func printZone(text string) error {
	zone, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return err
	}
	entries, err := dump(uint16(zone))
	if err != nil {
		return err
	}
	for _, e := range entries {
		fmt.Println(hex.EncodeToString(e))
	}
	return nil
}
