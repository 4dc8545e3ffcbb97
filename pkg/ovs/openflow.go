package ovs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// OpenFlow 1.5, which ovn-controller speaks too, so that every integration bridge allows it: the few messages by which a flow is waited for. Numbers are
// those of the OpenFlow Switch Specification 1.5.1, sections 7.1 (header), 7.2.3 (match), 7.3.5.17 (flow monitoring) and 7.5 (hello, echo, error).
const (
	ofVersion = 6

	ofHello            = 0
	ofError            = 1
	ofEchoRequest      = 2
	ofEchoReply        = 3
	ofMultipartRequest = 18
	ofMultipartReply   = 19

	ofMultipartFlowMonitor = 16
	ofMonitorInitial       = 1 << 0
	ofMonitorAdd           = 1 << 1
	ofMonitorRemoved       = 1 << 2
	ofMonitorInstructions  = 1 << 4
	ofUpdateRemoved        = 2
	ofUpdatePaused         = 5
	ofUpdateAbbreviated    = 4
	ofAnyPort              = 0xffffffff

	ofHeaderLen = 8
	// ofUpdateLen is the length of a flow update before its match, ofMatchLen of a match's own header.
	ofUpdateLen, ofMatchLen = 24, 4
	// oxmInPort is the header of a match on the port by which a packet comes in: class OpenFlow basic, field 0, 4 bytes.
	oxmInPort = 0x8000<<16 | 0<<9 | 4
)

// ofMessage is one message: its type and what follows the header.
type ofMessage struct {
	kind byte
	body []byte
}

// errOpenFlow is an answer that is not understood or is a refusal.
var errOpenFlow = errors.New("openflow")

func writeOpenFlow(w io.Writer, kind byte, body []byte) error {
	b := make([]byte, ofHeaderLen, ofHeaderLen+len(body))
	b[0], b[1] = ofVersion, kind
	binary.BigEndian.PutUint16(b[2:], uint16(ofHeaderLen+len(body))) //nolint:gosec // ours are short
	if _, err := w.Write(append(b, body...)); err != nil {
		return fmt.Errorf("send to bridge: %w", err)
	}
	return nil
}

func readOpenFlow(r io.Reader) (ofMessage, error) {
	var h [ofHeaderLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return ofMessage{}, fmt.Errorf("read from bridge: %w", err)
	}
	n := int(binary.BigEndian.Uint16(h[2:]))
	if n < ofHeaderLen {
		return ofMessage{}, fmt.Errorf("%w: a message of %d bytes", errOpenFlow, n)
	}
	m := ofMessage{kind: h[1], body: make([]byte, n-ofHeaderLen)}
	if _, err := io.ReadFull(r, m.body); err != nil {
		return ofMessage{}, fmt.Errorf("read from bridge: %w", err)
	}
	switch {
	case m.kind == ofError && len(m.body) >= 4:
		return ofMessage{}, fmt.Errorf("%w: the bridge refuses with type %d, code %d", errOpenFlow,
			binary.BigEndian.Uint16(m.body), binary.BigEndian.Uint16(m.body[2:]))
	case m.kind != ofHello && h[0] != ofVersion:
		return ofMessage{}, fmt.Errorf("%w: the bridge speaks version %d, want %d: does column protocols of Bridge leave OpenFlow15 out?", errOpenFlow, h[0], ofVersion)
	}
	return m, nil
}

// monitorRequest asks to be told of the flows of a table that take packets from one port: those that there are, and any that is added or removed.
func monitorRequest(table byte, inPort uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, ofMultipartFlowMonitor)
	b = append(b, make([]byte, 6)...)               // flags and padding
	b = binary.BigEndian.AppendUint32(b, 1)         // the monitor's number
	b = binary.BigEndian.AppendUint32(b, ofAnyPort) // whatever port they send to
	b = binary.BigEndian.AppendUint32(b, ofAnyPort) // whatever group
	b = binary.BigEndian.AppendUint16(b, ofMonitorInitial|ofMonitorAdd|ofMonitorRemoved|ofMonitorInstructions)
	b = append(b, table, 0)                 // command: add a monitor
	b = binary.BigEndian.AppendUint16(b, 1) // a match of OXMs
	b = binary.BigEndian.AppendUint16(b, ofMatchLen+8)
	b = binary.BigEndian.AppendUint32(b, oxmInPort)
	b = binary.BigEndian.AppendUint32(b, inPort)
	return append(b, 0, 0, 0, 0) // to a multiple of 8
}

// flowUpdate is a flow that there is, or was.
type flowUpdate struct {
	// removed: it is not there any more.
	removed  bool
	priority uint16
	// match has the OXMs without padding.
	match []byte
	// drops: it has no instructions. Of one that was removed a bridge need not say.
	drops bool
}

// flowUpdates reads the flows of a reply to monitorRequest.
func flowUpdates(body []byte) (out []flowUpdate, err error) {
	const multipartLen = 8
	if len(body) < multipartLen {
		return nil, fmt.Errorf("%w: a multipart reply of %d bytes", errOpenFlow, len(body))
	}
	for b := body[multipartLen:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: %d bytes after the last flow", errOpenFlow, len(b))
		}
		n, event := int(binary.BigEndian.Uint16(b)), binary.BigEndian.Uint16(b[2:])
		if n < 8 || n > len(b) {
			return nil, fmt.Errorf("%w: a flow of %d bytes in %d", errOpenFlow, n, len(b))
		}
		if event < ofUpdateAbbreviated {
			u, err := flowUpdateOf(b[:n])
			if err != nil {
				return nil, err
			}
			u.removed = event == ofUpdateRemoved
			out = append(out, u)
		}
		if event == ofUpdatePaused {
			return nil, fmt.Errorf("%w: the bridge has too many changes of flows to tell them all", errOpenFlow)
		}
		b = b[n:]
	}
	return out, nil
}

func flowUpdateOf(b []byte) (flowUpdate, error) {
	if len(b) < ofUpdateLen+ofMatchLen {
		return flowUpdate{}, fmt.Errorf("%w: a flow of %d bytes", errOpenFlow, len(b))
	}
	match := int(binary.BigEndian.Uint16(b[ofUpdateLen+2:])) // without padding to 8
	end := ofUpdateLen + (match+7)/8*8
	if match < ofMatchLen || end > len(b) {
		return flowUpdate{}, fmt.Errorf("%w: a match of %d bytes in a flow of %d", errOpenFlow, match, len(b))
	}
	return flowUpdate{
		priority: binary.BigEndian.Uint16(b[10:]), match: b[ofUpdateLen+ofMatchLen : ofUpdateLen+match], drops: end == len(b),
	}, nil
}

// isInPort: the match is on the port alone.
func (u flowUpdate) isInPort(port uint32) bool {
	want := binary.BigEndian.AppendUint32(nil, oxmInPort)
	return bytes.Equal(u.match, binary.BigEndian.AppendUint32(want, port))
}
