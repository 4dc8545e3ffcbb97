package kubectl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Sizes of a pcap file's parts, in bytes (draft-ietf-opsawg-pcap). longestPacket is more than tcpdump keeps of one.
const (
	pcapHeader    = 24
	packetHeader  = 16
	longestPacket = 1 << 20
)

// Magic numbers of a pcap with times in microseconds, and in nanoseconds.
const (
	pcapMicro = 0xa1b2c3d4
	pcapNano  = 0xa1b23c4d
)

// pcaps make one pcap of several that come at once: the first one's header, and of all of them whole packets, in the order in which they come. Safe for concurrent use.
type pcaps struct {
	mu     sync.Mutex
	out    io.Writer
	header []byte
}

// stream is one of them, written to as it comes.
func (p *pcaps) stream() io.Writer { return &pcapStream{of: p} }

type pcapStream struct {
	of    *pcaps
	rest  []byte
	order binary.ByteOrder // nil before the header has come
}

// Write implements io.Writer. A packet of which the end has not come waits, and is lost if it never does.
func (s *pcapStream) Write(b []byte) (int, error) {
	s.rest = append(s.rest, b...)
	if s.order == nil {
		if len(s.rest) < pcapHeader {
			return len(b), nil
		}
		if err := s.begin(); err != nil {
			return 0, err
		}
	}
	whole := 0
	for len(s.rest)-whole >= packetHeader {
		kept := s.order.Uint32(s.rest[whole+8:])
		if kept > longestPacket {
			return 0, fmt.Errorf("a packet of %d bytes in a pcap: it is damaged", kept)
		}
		next := whole + packetHeader + int(kept)
		if next > len(s.rest) {
			break
		}
		whole = next
	}
	if err := s.of.write(s.rest[:whole]); err != nil {
		return 0, err
	}
	s.rest = append(s.rest[:0], s.rest[whole:]...)
	return len(b), nil
}

// begin reads the header, and takes it off.
func (s *pcapStream) begin() error {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if magic := order.Uint32(s.rest); magic == pcapMicro || magic == pcapNano {
			s.order = order
		}
	}
	if s.order == nil {
		return fmt.Errorf("what came begins with %q, which is no pcap", s.rest[:4])
	}
	if err := s.of.begin(s.rest[:pcapHeader]); err != nil {
		return err
	}
	s.rest = s.rest[pcapHeader:]
	return nil
}

// begin writes a header, unless one was: then the two must be the same, or nobody could read what follows.
func (p *pcaps) begin(header []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.header != nil {
		if !bytes.Equal(p.header, header) {
			return errors.New("the nodes write different kinds of pcap (byte order, time stamps, link type or snapshot length), which do not go into one: without -w it is text")
		}
		return nil
	}
	p.header = bytes.Clone(header)
	_, err := p.out.Write(header)
	return err
}

func (p *pcaps) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.out.Write(b)
	return err
}

// lines are texts that come at once and are written line by line, each with a mark. Safe for concurrent use.
type lines struct {
	mu  sync.Mutex
	out io.Writer
}

// stream is one of them. Its mark, if it has one, is before each line.
func (l *lines) stream(mark string) io.Writer { return &lineStream{of: l, mark: mark} }

type lineStream struct {
	of   *lines
	mark string
	rest []byte
}

// Write implements io.Writer. A line without an end waits for it.
func (s *lineStream) Write(b []byte) (int, error) {
	s.rest = append(s.rest, b...)
	end := bytes.LastIndexByte(s.rest, '\n') + 1
	if end == 0 {
		return len(b), nil
	}
	var text bytes.Buffer
	for line := range bytes.Lines(s.rest[:end]) {
		if s.mark != "" && len(line) == 1 {
			continue // tcpdump ends a line that it thinks has the terminal's ^C
		}
		text.WriteString(s.mark)
		text.Write(line)
	}
	s.rest = append(s.rest[:0], s.rest[end:]...)
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if _, err := s.of.out.Write(text.Bytes()); err != nil {
		return 0, err
	}
	return len(b), nil
}
