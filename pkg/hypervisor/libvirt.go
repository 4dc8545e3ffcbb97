package hypervisor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// libvirt's remote procedure calls (src/rpc/virnetprotocol.x, src/remote/remote_protocol.x there), as far as they are needed: to open a connection and be told of lifecycle events. That is less than a
// library, and bounded, which github.com/digitalocean/go-libvirt is not: it makes room for as much as the other side says will come, and panics at lengths that cannot be.
const (
	remoteProgram = 0x20008086
	remoteVersion = 1

	procConnectOpen  = 1
	procAuthList     = 66
	procRegisterAny  = 316 // REMOTE_PROC_CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY
	procLifecycle    = 318 // REMOTE_PROC_DOMAIN_EVENT_CALLBACK_LIFECYCLE
	eventIDLifecycle = 0   // VIR_DOMAIN_EVENT_ID_LIFECYCLE

	kindCall    = 0
	kindReply   = 1
	kindMessage = 2
	statusOK    = 0

	// rpcHeader is the length of a packet's length and header, rpcMax the longest packet that is taken, in bytes. Those that are asked for have some hundred.
	rpcHeader = 28
	rpcMax    = 64 << 10
)

// Lifecycle events (include/libvirt/libvirt-domain.h).
const (
	lifecycleSuspended = 3
	lifecycleResumed   = 4

	// Details of lifecycleSuspended.
	suspendedMigrated = 1
	suspendedPostCopy = 7
)

// uris are how a launcher's virtqemud may be addressed: "session" is for one that is not root's, and root's takes it too; "system" is root's own.
var uris = [...]string{"qemu:///session", "qemu:///system"}

var errMalformed = errors.New("libvirt's answer makes no sense")

// packet is one of libvirt's without its length.
type packet struct {
	program, procedure, kind, serial, status uint32
	payload                                  []byte
}

// libvirt is a connection to a virtqemud.
type libvirt struct {
	conn   net.Conn
	serial uint32
}

func newLibvirt(conn net.Conn) source { return &libvirt{conn: conn} }

func (l *libvirt) begin() error {
	if err := l.call(procAuthList, nil); err != nil {
		return fmt.Errorf("ask libvirt how to log in: %w", err)
	}
	var errs []error
	for _, uri := range uris {
		args := xdrString(binary.BigEndian.AppendUint32(nil, 1), uri) // 1: there is a name
		err := l.call(procConnectOpen, binary.BigEndian.AppendUint32(args, 0))
		if err == nil {
			return l.register()
		}
		errs = append(errs, fmt.Errorf("open libvirt's %s: %w", uri, err))
	}
	return errors.Join(errs...)
}

func (l *libvirt) register() error {
	args := binary.BigEndian.AppendUint32(nil, eventIDLifecycle)
	if err := l.call(procRegisterAny, binary.BigEndian.AppendUint32(args, 0)); err != nil { // 0: of all domains, a launcher has one
		return fmt.Errorf("ask libvirt for lifecycle events: %w", err)
	}
	return nil
}

// call waits for the answer. Events cannot come before the call that asks for them is answered, so that none is passed over.
func (l *libvirt) call(procedure uint32, args []byte) error {
	l.serial++
	out := packet{program: remoteProgram, procedure: procedure, kind: kindCall, serial: l.serial, payload: args}
	if _, err := l.conn.Write(out.encode()); err != nil {
		return err
	}
	for {
		p, err := readPacket(l.conn)
		switch {
		case err != nil:
			return err
		case p.kind != kindReply || p.serial != l.serial || p.procedure != procedure:
			continue
		case p.status != statusOK:
			return fmt.Errorf("libvirt refuses: %s", errorText(p.payload))
		}
		return nil
	}
}

func (l *libvirt) next() (Event, error) {
	p, err := readPacket(l.conn)
	if err != nil || p.program != remoteProgram || p.procedure != procLifecycle || p.kind != kindMessage {
		return 0, err
	}
	return lifecycle(p.payload)
}

// lifecycle reads remote_domain_event_callback_lifecycle_msg: the callback's number, the domain (name, UUID, number), event and detail.
func lifecycle(b []byte) (Event, error) {
	d := xdr{rest: b}
	d.skip(4)
	d.opaque(d.number())
	d.skip(16 + 4)
	event, detail := d.number(), d.number()
	switch {
	case d.failed:
		return 0, errMalformed
	case event == lifecycleResumed:
		return Resumed, nil
	case event == lifecycleSuspended && (detail == suspendedMigrated || detail == suspendedPostCopy):
		return Stopped, nil
	}
	return 0, nil
}

// errorText is the message of remote_error: code, domain, and a string that may be missing.
func errorText(b []byte) string {
	d := xdr{rest: b}
	code := d.number()
	d.skip(4)
	if d.number() == 1 {
		if text := d.opaque(d.number()); !d.failed {
			return fmt.Sprintf("%q", text)
		}
	}
	return fmt.Sprintf("error %d", code)
}

func (p packet) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(rpcHeader+len(p.payload))) //nolint:gosec // some bytes
	for _, v := range []uint32{p.program, remoteVersion, p.procedure, p.kind, p.serial, p.status} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return append(b, p.payload...)
}

func readPacket(r io.Reader) (packet, error) {
	var head [rpcHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return packet{}, err
	}
	field := func(i int) uint32 { return binary.BigEndian.Uint32(head[4*i:]) }
	size := field(0)
	if size < rpcHeader || size > rpcMax {
		return packet{}, fmt.Errorf("%w: a packet of %d bytes", errMalformed, size)
	}
	p := packet{program: field(1), procedure: field(3), kind: field(4), serial: field(5), status: field(6), payload: make([]byte, size-rpcHeader)}
	_, err := io.ReadFull(r, p.payload)
	return p, err
}

// xdrString appends a string (RFC 4506, 4.11): its length, and its octets filled up to a multiple of four.
func xdrString(b []byte, s string) []byte {
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) //nolint:gosec // some bytes
	return append(b, make([]byte, -len(s)&3)...)
}

// xdr reads what is encoded by RFC 4506. After a failure everything is zero.
type xdr struct {
	rest   []byte
	failed bool
}

func (d *xdr) number() uint32 {
	if b := d.skip(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// opaque is so many octets, and passes over those that fill them up.
func (d *xdr) opaque(n uint32) []byte {
	if b := d.skip((uint64(n) + 3) &^ 3); b != nil {
		return b[:n]
	}
	return nil
}

func (d *xdr) skip(n uint64) []byte {
	if d.failed || n > uint64(len(d.rest)) {
		d.failed = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}
