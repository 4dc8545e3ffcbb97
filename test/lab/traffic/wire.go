package traffic

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A probe: magic, type, zero, flow, run, sequence number, pattern, checksum of all but magic and type.
const (
	probeMagic = "GwPr"
	typeProbe  = 1
	typeReply  = 2
	probeHead  = 20
)

type probe struct {
	kind byte
	flow uint16
	run  RunID
	seq  uint32
}

// put writes a probe over all of b, which has minProbe bytes or more.
func (p probe) put(b []byte) {
	copy(b, probeMagic)
	b[4], b[5] = p.kind, 0
	binary.BigEndian.PutUint16(b[6:], p.flow)
	binary.BigEndian.PutUint64(b[8:], uint64(p.run))
	binary.BigEndian.PutUint32(b[16:], p.seq)
	end := len(b) - 4
	fill(b[probeHead:end], uint64(p.run), int64(p.seq)*maxProbe)
	binary.BigEndian.PutUint32(b[end:], crc32.ChecksumIEEE(b[5:end]))
}

// parseProbe reads a datagram: ours tells whether it is a probe at all, intact whether its content is right.
func parseProbe(b []byte) (p probe, ours, intact bool) {
	if len(b) < minProbe || string(b[:4]) != probeMagic {
		return probe{}, false, false
	}
	end := len(b) - 4
	p = probe{
		kind: b[4], flow: binary.BigEndian.Uint16(b[6:]), run: RunID(binary.BigEndian.Uint64(b[8:])), seq: binary.BigEndian.Uint32(b[16:]),
	}
	return p, true, binary.BigEndian.Uint32(b[end:]) == crc32.ChecksumIEEE(b[5:end])
}

// hello is what a run's connection begins with: magic, run, number, kind, rate.
type hello struct {
	run    RunID
	number uint32
	kind   Kind
	rate   int64
}

const (
	helloMagic = "GwTraf1\n"
	helloSize  = 32
)

// kindBytes are what stands for a kind in a hello.
func kindByte(k Kind) byte { return k[0] } // e, u, d

func (h hello) bytes() []byte {
	b := make([]byte, helloSize)
	copy(b, helloMagic)
	binary.BigEndian.PutUint64(b[8:], uint64(h.run))
	binary.BigEndian.PutUint32(b[16:], h.number)
	b[20] = kindByte(h.kind)
	binary.BigEndian.PutUint64(b[24:], uint64(h.rate))
	return b
}

// mayBeHello tells whether b begins as a hello does, as far as it goes.
func mayBeHello(b []byte) bool {
	n := min(len(b), len(helloMagic))
	return string(b[:n]) == helloMagic[:n]
}

func parseHello(b []byte) (hello, error) {
	h := hello{
		run: RunID(binary.BigEndian.Uint64(b[8:])), number: binary.BigEndian.Uint32(b[16:]), rate: int64(binary.BigEndian.Uint64(b[24:])),
	}
	for _, k := range []Kind{Echo, Upload, Download} {
		if b[20] == kindByte(k) {
			h.kind = k
		}
	}
	if h.kind == "" || h.rate < 0 || h.rate > 1<<30 {
		return hello{}, fmt.Errorf("a connection's hello asks for kind %q at %d bytes a second: is it another version of this program?", b[20], h.rate)
	}
	return h, nil
}

// seed makes every stream another one, so that bytes of one connection in another are seen.
func (h hello) seed() uint64 {
	return uint64(h.run) ^ uint64(h.number)<<48 ^ uint64(kindByte(h.kind))<<40
}

// fill writes the pattern's bytes from offset on: words of splitmix64, which repeat nowhere.
func fill(b []byte, seed uint64, offset int64) {
	var w [8]byte
	for len(b) > 0 {
		binary.LittleEndian.PutUint64(w[:], word(seed, uint64(offset)/8))
		n := copy(b, w[offset%8:])
		b, offset = b[n:], offset+int64(n)
	}
}

func word(seed, i uint64) uint64 {
	z := seed + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// errCorrupt is what a stream with other bytes than its pattern's ends with.
type errCorrupt struct{ offset int64 }

func (e errCorrupt) Error() string { return fmt.Sprintf("the content is wrong at byte %d", e.offset) }

// verifier checks a stream against its pattern.
type verifier struct {
	seed    uint64
	offset  int64
	pattern []byte
}

// check takes the stream's next bytes.
func (v *verifier) check(b []byte) error {
	if cap(v.pattern) < len(b) {
		v.pattern = make([]byte, len(b))
	}
	want := v.pattern[:len(b)]
	fill(want, v.seed, v.offset)
	if !bytes.Equal(want, b) {
		for i := range b {
			if b[i] != want[i] {
				return errCorrupt{v.offset + int64(i)}
			}
		}
	}
	v.offset += int64(len(b))
	return nil
}
