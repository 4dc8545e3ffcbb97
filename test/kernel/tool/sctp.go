package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The standard library has no SCTP; a one-to-one socket (RFC 6458, section 4) is used like one of TCP's.

func socket(a netip.AddrPort) (fd int, to unix.Sockaddr, err error) {
	family := unix.AF_INET6
	to = &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if a.Addr().Is4() {
		family = unix.AF_INET
		to = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return 0, nil, fmt.Errorf("open an SCTP socket: %w: does the kernel have the module sctp?", err)
	}
	return fd, to, nil
}

// holdEvery is between two messages of an association that is held.
const holdEvery = 200 * time.Millisecond

// serve answers one association after another, for ever.
func serve(at netip.AddrPort) error {
	fd, addr, err := socket(at)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(fd, addr), unix.Listen(fd, 8)); err != nil {
		return fmt.Errorf("listen on %s: %w", at, err)
	}
	fmt.Println("listening")
	for {
		conn, peer, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		f := os.NewFile(uintptr(conn), "association")
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if _, err := fmt.Fprintf(f, "%s from %s\n", lines.Text(), name(peer)); err != nil {
				break // the peer has gone
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
}

func name(a unix.Sockaddr) netip.Addr {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr)
	}
	return netip.Addr{}
}

func ask(to netip.AddrPort, n int) error {
	fd, addr, err := socket(to)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "association")
	defer func() { _ = f.Close() }()
	// No answer is an error, not a wait for ever.
	limit := unix.Timeval{Sec: 20}
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)); err != nil {
		return fmt.Errorf("set the socket's timeouts: %w", err)
	}
	if err := unix.Connect(fd, addr); err != nil {
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	answers := bufio.NewReader(f)
	for i := 0; n == 0 || i < n; i++ {
		if _, err := fmt.Fprintf(f, "message %d\n", i); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		line, err := answers.ReadString('\n')
		if err != nil {
			return fmt.Errorf("receive answer %d: %w", i, err)
		}
		fmt.Print(line)
		if n == 0 {
			time.Sleep(holdEvery)
		}
	}
	return nil
}
