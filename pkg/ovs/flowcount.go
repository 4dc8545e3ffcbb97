package ovs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// Aggregates: OpenFlow Switch Specification 1.5.1, sections 7.3.5.4 (request) and 7.2.4 (statistics, OXS).
const (
	ofMultipartAggregate = 2
	ofAllTables          = 0xff
	// oxsFlowCount is the header of a count of flows: class OpenFlow basic, field 3, 4 bytes.
	oxsFlowCount = 0x8002<<16 | 3<<9 | 4
)

// FlowCount is how many OpenFlow flows the integration bridge has; dir has the bridge's socket.
func FlowCount(ctx context.Context, dir string) (int, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, ident.IntegrationBridge+".mgmt"))
	if err != nil {
		return 0, fmt.Errorf("connect to bridge %s: %w", ident.IntegrationBridge, err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost with it
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	n, err := countFlows(conn)
	if err != nil {
		return 0, fmt.Errorf("count the flows of bridge %s: %w", ident.IntegrationBridge, errors.Join(err, ctx.Err()))
	}
	return n, nil
}

func countFlows(conn net.Conn) (int, error) {
	if err := errors.Join(writeOpenFlow(conn, ofHello, nil), writeOpenFlow(conn, ofMultipartRequest, aggregateRequest())); err != nil {
		return 0, err
	}
	for {
		m, err := readOpenFlow(conn)
		if err != nil {
			return 0, err
		}
		switch m.kind {
		case ofEchoRequest:
			if err := writeOpenFlow(conn, ofEchoReply, m.body); err != nil {
				return 0, err
			}
		case ofMultipartReply:
			return aggregateFlows(m.body)
		}
	}
}

// aggregateRequest asks for sums over all flows of all tables.
func aggregateRequest() []byte {
	b := binary.BigEndian.AppendUint16(nil, ofMultipartAggregate)
	b = append(b, make([]byte, 6)...)   // flags and padding
	b = append(b, ofAllTables, 0, 0, 0) // padding
	b = binary.BigEndian.AppendUint32(b, ofAnyPort)
	b = binary.BigEndian.AppendUint32(b, ofAnyPort) // whatever group
	b = append(b, make([]byte, 4+8+8)...)           // padding; any cookie
	b = binary.BigEndian.AppendUint16(b, 1)         // a match of OXMs, of none
	b = binary.BigEndian.AppendUint16(b, ofMatchLen)
	return append(b, 0, 0, 0, 0) // to a multiple of 8
}

// aggregateFlows reads the count of flows of a reply.
func aggregateFlows(body []byte) (int, error) {
	const before, header = 8 + 4, 4 // the multipart's header, that of the statistics; a statistic's own
	for b := body[min(before, len(body)):]; len(b) >= header; {
		n := header + int(b[3])
		if n > len(b) {
			break
		}
		if binary.BigEndian.Uint32(b) == oxsFlowCount {
			return int(binary.BigEndian.Uint32(b[header:])), nil
		}
		b = b[n:]
	}
	return 0, fmt.Errorf("%w: a reply of %d bytes has no count of flows", errOpenFlow, len(body))
}
