package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// batch is how many requests the kernel gets in one system call. Most of what a request costs is in the kernel: more at once gain little.
	batch = 50
	// replyTimeout is how long the kernel may take for an answer, which it gives at once.
	replyTimeout = 10 * time.Second
	// receiveBuffer in bytes: the answers of a batch must all have room, each takes some kilobytes of the kernel's memory.
	receiveBuffer = 4 << 20
	// largestMessage in bytes: the kernel puts at most half as much into one answer of a dump.
	largestMessage = 64 << 10
)

// kernel answers requests: a socket, or what tests have in its place.
type kernel interface {
	// do returns the answers to the requests, in their order. An error is the socket's, not a request's.
	do(ctx context.Context, requests []request) ([]answer, error)
	// dump calls see with each message that answers a request for many; messages are the caller's until see returns. It ends with see's first error, when all is read, or with ctx, after which
	// the socket is of no use: the rest of the answer is in it.
	dump(ctx context.Context, r request, see func(message []byte) error) error
}

// answer is what the kernel says to one request.
type answer struct {
	// message is struct nfgenmsg and attributes, if it was asked for something that there is.
	message []byte
	// err is nil or a unix.Errno.
	err error
}

// socket is a netlink socket of one network namespace. Its methods are safe for concurrent use.
type socket struct {
	mu     sync.Mutex
	fd     int
	seq    uint32
	buffer []byte
	// failed is what every call returns once the socket has failed: answers may be lost, or come late.
	failed error
}

var errClosed = errors.New("socket of connection tracking is closed")

// newSocket opens one in the network namespace of the calling thread.
func newSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a socket of netfilter: %w", err)
	}
	timeout := unix.NsecToTimeval(replyTimeout.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set a socket of netfilter up: %w", err), unix.Close(fd))
	}
	return &socket{fd: fd, buffer: make([]byte, largestMessage)}, nil
}

func (s *socket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.failed, errClosed) {
		return nil
	}
	s.failed = errClosed
	return unix.Close(s.fd)
}

func (s *socket) do(ctx context.Context, requests []request) ([]answer, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var b []byte
	first := s.seq + 1
	for _, r := range requests {
		s.seq++
		b = r.append(b, s.seq)
	}
	answers, answered := make([]answer, len(requests)), make([]bool, len(requests))
	left := len(requests)
	err := s.exchange(ctx, b, func(h header, data []byte) (done bool, err error) {
		i := h.seq - first
		if i >= uint32(len(requests)) {
			return false, nil
		}
		if h.kind != unix.NLMSG_ERROR {
			answers[i].message = append([]byte(nil), data...)
			return false, nil
		}
		if answered[i] {
			return false, fmt.Errorf("%w: two answers to one request", errMessage)
		}
		answered[i] = true
		left--
		answers[i].err, err = errnoOf(data)
		return left == 0, err
	})
	return answers, err
}

func (s *socket) dump(ctx context.Context, r request, see func(message []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	var seen error
	err := s.exchange(ctx, r.append(nil, s.seq), func(h header, data []byte) (done bool, err error) {
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case h.seq != s.seq:
			return false, nil
		case h.kind == unix.NLMSG_ERROR || h.kind == unix.NLMSG_DONE && len(data) > 0:
			said, err := errnoOf(data)
			if said != nil {
				seen = fmt.Errorf("kernel: %w", said)
			}
			return true, err
		case h.kind == unix.NLMSG_DONE:
			return true, nil
		}
		if seen == nil {
			seen = see(data)
		}
		return false, nil
	})
	return errors.Join(err, seen)
}

// exchange sends messages and calls see with each that comes, until see says that it was the last. What it returns is an error of the socket's, which has failed with it.
func (s *socket) exchange(ctx context.Context, b []byte, see func(h header, data []byte) (done bool, err error)) error {
	if err := errors.Join(ctx.Err(), s.failed); err != nil {
		return err
	}
	err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err != nil {
		err = fmt.Errorf("send %d bytes: %w", len(b), err)
	}
	for done := false; err == nil && !done; {
		done, err = s.receive(see)
	}
	if err != nil {
		s.failed = fmt.Errorf("ask the kernel about connection tracking: %w", err)
	}
	return s.failed
}

// receive reads once and calls see with what came, to the last.
func (s *socket) receive(see func(h header, data []byte) (done bool, err error)) (done bool, err error) {
	n, from, err := unix.Recvfrom(s.fd, s.buffer, 0)
	switch {
	case errors.Is(err, unix.EINTR): // a timeout of the socket's makes the Go runtime's own signals interrupt it
		return false, nil
	case errors.Is(err, unix.EAGAIN):
		return false, fmt.Errorf("no answer in %s", replyTimeout)
	case err != nil:
		return false, fmt.Errorf("receive: %w", err)
	}
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != nl.PidKernel {
		return false, nil // any process can send to the socket
	}
	for b := s.buffer[:n]; len(b) > 0 && !done; {
		var h header
		var data []byte
		if h, data, b, err = nextMessage(b); err != nil {
			return false, err
		}
		if done, err = see(h, data); err != nil {
			return false, err
		}
	}
	return done, nil
}

// header is what is needed of struct nlmsghdr.
type header struct {
	kind uint16
	seq  uint32
}

// nextMessage is the first of some netlink messages.
func nextMessage(b []byte) (h header, data, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return h, nil, nil, fmt.Errorf("%w: %d bytes are left over", errMessage, len(b))
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < unix.SizeofNlMsghdr || n > len(b) {
		return h, nil, nil, fmt.Errorf("%w: it says that it has %d bytes, of %d that are left", errMessage, n, len(b))
	}
	h.kind, h.seq = binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
	return h, b[unix.SizeofNlMsghdr:n], b[min(align(n), len(b)):], nil
}

// errnoOf is the error of struct nlmsgerr, nil if there was none.
func errnoOf(data []byte) (said, err error) {
	if len(data) < 4 {
		return nil, fmt.Errorf("%w: an answer of %d bytes", errMessage, len(data))
	}
	if n := int32(binary.NativeEndian.Uint32(data)); n != 0 {
		return unix.Errno(-n), nil
	}
	return nil, nil
}
