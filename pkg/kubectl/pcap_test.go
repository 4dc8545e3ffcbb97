package kubectl

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// pcapOf is a pcap of packets.
func pcapOf(order binary.AppendByteOrder, packets ...string) []byte {
	b := order.AppendUint32(nil, pcapMicro)
	b = append(b, make([]byte, pcapHeader-4)...)
	for _, p := range packets {
		b = append(b, make([]byte, 8)...)
		b = order.AppendUint32(order.AppendUint32(b, uint32(len(p))), uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// However two pcaps come, byte by byte and mixed, one comes out: one header, all whole packets.
func TestPcaps(t *testing.T) {
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		var out bytes.Buffer
		p := &pcaps{out: &out}
		first, second := p.stream(), p.stream()
		a, b := pcapOf(order, "one", "", "three"), pcapOf(order, "two", "cut")
		b = b[:len(b)-1]
		for i := range max(len(a), len(b)) {
			if i < len(a) {
				if _, err := first.Write(a[i : i+1]); err != nil {
					t.Fatal(err)
				}
			}
			if i < len(b) {
				if _, err := second.Write(b[i : i+1]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if want := pcapOf(order, "one", "two", "", "three"); !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%s:\n%q, want\n%q", order, out.Bytes(), want)
		}
		if _, err := p.stream().Write(pcapOf(order, "4")); err != nil || !bytes.HasSuffix(out.Bytes(), []byte("4")) {
			t.Errorf("at once: %v", err)
		}
	}
}

func TestPcapsThatDoNotGoTogether(t *testing.T) {
	p := &pcaps{out: &bytes.Buffer{}}
	if _, err := p.stream().Write(pcapOf(binary.LittleEndian)); err != nil {
		t.Fatal(err)
	}
	damaged := binary.LittleEndian.AppendUint32(append(pcapOf(binary.LittleEndian), make([]byte, 8)...), longestPacket+1)
	for want, b := range map[string][]byte{
		"different kinds of pcap": pcapOf(binary.BigEndian), "is no pcap": []byte(strings.Repeat("text", 6)), "it is damaged": append(damaged, make([]byte, 4)...),
	} {
		if _, err := p.stream().Write(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	l := &lines{out: &out}
	one, two := l.stream("node1: "), l.stream("")
	for _, w := range []struct {
		to   int
		text string
	}{{1, "a"}, {2, "x\n"}, {1, "b\nc\nd"}, {2, "y"}, {1, "\n"}} {
		to := one
		if w.to == 2 {
			to = two
		}
		if n, err := to.Write([]byte(w.text)); err != nil || n != len(w.text) {
			t.Errorf("%d, %v", n, err)
		}
	}
	if want := "x\nnode1: ab\nnode1: c\nnode1: d\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
