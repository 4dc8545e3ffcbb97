// Command tool does in the virtual machine what no program there does:
//
//	tool rarp LINK              announces the link's MAC address, as QEMU does after a migration
//	tool sctp serve ADDR:PORT   says what it is told, and who told it
//	tool sctp ask ADDR:PORT N   tells N messages, each once the answer to the last has come; without end if N is 0, and slowly
//	tool conntrack ZONE         the connection tracking entries of a zone, a netlink message as hexadecimal digits a line
package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/godwit-cni/godwit/pkg/frame"
)

var errUsage = errors.New("usage: tool rarp LINK | sctp serve ADDR:PORT | sctp ask ADDR:PORT N | conntrack ZONE")

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1) //nolint:forbidigo // main
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "rarp":
		link, err := net.InterfaceByName(args[1])
		if err != nil {
			return err
		}
		return frame.Send(link.Index, frame.RARP(link.HardwareAddr))
	case len(args) == 2 && args[0] == "conntrack":
		return printZone(args[1])
	case len(args) == 3 && slices.Equal(args[:2], []string{"sctp", "serve"}):
		at, err := netip.ParseAddrPort(args[2])
		if err != nil {
			return err
		}
		return serve(at)
	case len(args) == 4 && slices.Equal(args[:2], []string{"sctp", "ask"}):
		to, perr := netip.ParseAddrPort(args[2])
		n, err := strconv.Atoi(args[3])
		if err := errors.Join(perr, err); err != nil {
			return err
		}
		return ask(to, n)
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
