package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
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

const (
	// holdEvery is between two messages of an association that is held.
	holdEvery = 200 * time.Millisecond
	// answerWithin bounds each step of who asks: no answer is an error, not a wait for ever.
	answerWithin = 20 * time.Second
)

// reply is what a server answers to a message of a peer.
type reply func(text string, peer netip.Addr) string

// repeat is the reply that repeats the message, and says whose it is.
func repeat(text string, peer netip.Addr) string { return fmt.Sprintf("%s from %s", text, peer) }

// serveSCTP answers every message, for ever.
func serveSCTP(at netip.AddrPort, with reply) error {
	fd, addr, err := socket(at)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(fd, addr), unix.Listen(fd, 64)); err != nil {
		return fmt.Errorf("listen on %s: %w", at, err)
	}
	fmt.Println("listening")
	for {
		conn, peer, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go answer(os.NewFile(uintptr(conn), "association"), name(peer), with)
	}
}

// answer serves one association, until the peer has gone.
func answer(f *os.File, peer netip.Addr, with reply) {
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if _, err := fmt.Fprintln(f, with(lines.Text(), peer)); err != nil {
			return
		}
	}
}

func name(a unix.Sockaddr) netip.Addr {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr).Unmap()
	}
	return netip.Addr{}
}

// associate opens an association, of which each step may take within.
func associate(to netip.AddrPort, within time.Duration) (*os.File, error) {
	fd, addr, err := socket(to)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "association")
	limit := unix.NsecToTimeval(within.Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set the socket's timeouts: %w", err), f.Close())
	}
	if err := unix.Connect(fd, addr); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", to, err), f.Close())
	}
	return f, nil
}

// askOnce sends one line and returns the answer; it opens and ends an association. The target is ADDR:PORT or ADDR:PORT/TEXT.
func askOnce(ctx context.Context, target string) (string, error) {
	to, text, _ := strings.Cut(target, "/")
	at, err := netip.ParseAddrPort(to)
	if err != nil {
		return "", err
	}
	within := answerWithin
	if deadline, ok := ctx.Deadline(); ok {
		within = max(time.Until(deadline), time.Millisecond)
	}
	f, err := associate(at, within)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if _, err := fmt.Fprintln(f, cmp.Or(text, "probe")); err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	line, err := bufio.NewReader(f).ReadString('\n')
	return strings.TrimSpace(line), err
}

// ask sends n messages, each once the answer to the last has come; without end if n is 0, and slowly.
func ask(to netip.AddrPort, n int) error {
	f, err := associate(to, answerWithin)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
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
