package conntrack

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func encoded(t interface{ Fatal(...any) }, entries []Entry) [][]byte {
	out, err := Encode(entries)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(drawEntry), 0, 20).Draw(t, "entries")
		var got []Entry
		for _, m := range encoded(t, want) {
			some, err := Decode(m)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, some...)
		}
		for i := range want {
			want[i].Zone = 0
		}
		if !slices.Equal(want, got) {
			t.Fatalf("-want +got:\n%s", cmp.Diff(want, got, byAddr))
		}
	})
}

// TestWireBounds: many entries are several messages, none longer than it may be, each of which can be read alone.
func TestWireBounds(t *testing.T) {
	const many = 10_000
	entries := make([]Entry, many)
	for i := range entries {
		entries[i] = balanced()
		entries[i].Orig.SrcPort, entries[i].Reply.DstPort = uint16(i), uint16(i)
	}
	messages, n := encoded(t, entries), 0
	for _, m := range messages {
		some, err := Decode(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(m) > MaxMessage {
			t.Errorf("a message of %d bytes, want at most %d", len(m), MaxMessage)
		}
		n += len(some)
	}
	if n != many || len(messages) > 10 {
		t.Errorf("%d entries in %d messages, want %d in at most 10", n, len(messages), many)
	}
	t.Logf("%d entries are %d messages; %d bytes an entry", many, len(messages), len(messages[0])*len(messages)/many)
}

func TestDecodeRefuses(t *testing.T) {
	good := encoded(t, []Entry{balanced()})[0]
	change := func(at int, b ...byte) []byte {
		out := slices.Clone(good)
		copy(out[at:], b)
		return out
	}
	labelled := balanced()
	labelled.Labels = Labels{1}
	withLabel := encoded(t, []Entry{labelled})[0]
	// A label stands before the five bytes of TCP's.
	emptyLabel := slices.Concat(withLabel[:len(withLabel)-21], make([]byte, 16), withLabel[len(withLabel)-5:])
	for name, m := range map[string][]byte{
		"nothing":                     nil,
		"another version":             change(0, 2),
		"no entry":                    {version, 0, 0},
		"more entries than there are": change(1, 0, 2),
		"fewer":                       {version, 0, 0, 1},
		"an end that is missing":      good[:len(good)-1],
		"a byte too many":             append(slices.Clone(good), 0),
		"unknown flags":               change(3, 0x82),
		"another protocol":            change(4, 47),
		"NAT that is none":            plainWithNAT(t),
		"a label that is none":        emptyLabel,
		"a state that TCP has not":    change(len(good)-5, 10),
		"too long":                    make([]byte, MaxMessage+1),
	} {
		if got, err := Decode(m); !errors.Is(err, errMessage) {
			t.Errorf("%s: %v, error %v, want one that wraps %q", name, got, err, errMessage)
		}
	}
	torn := balanced()
	torn.TCP.State = 200
	if _, err := Encode([]Entry{torn}); !errors.Is(err, errMessage) {
		t.Errorf("an entry that no dump has is encoded: %v", err)
	}
}

// plainWithNAT is a connection without NAT, whose message says that there is some and repeats the plain reply.
func plainWithNAT(t *testing.T) []byte {
	e := plain(balanced(), 0)
	m := encoded(t, []Entry{e})[0]
	reply := appendTuple(nil, TCP, e.Reply)
	out := slices.Concat(m[:len(m)-5], reply, m[len(m)-5:])
	out[3] |= wireNAT
	return out
}

// FuzzDecode: whatever comes, it is an error or what Encode makes of the entries again.
func FuzzDecode(f *testing.F) {
	e := balanced()
	f.Add(encoded(f, []Entry{e})[0])
	e.Protocol, e.TCP, e.SCTP, e.Labels = SCTP, TCPState{}, SCTPState{State: 4, Tags: [2]uint32{1, 2}}, Labels{3}
	f.Add(encoded(f, []Entry{e, plain(e, 0)})[0])
	for _, m := range recorded(f).Source.decoded(f) {
		if got, err := parse(m); err == nil {
			f.Add(encoded(f, []Entry{got.Entry})[0])
		}
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		got, err := Decode(m)
		if err != nil {
			if !errors.Is(err, errMessage) {
				t.Fatalf("error %v is of no kind", err)
			}
			return
		}
		if again := encoded(t, got); len(again) != 1 || !bytes.Equal(again[0], m) {
			t.Fatalf("%x came back as %x", m, again)
		}
		for _, e := range got {
			if e, reason := e.moved(1); reason == "" {
				create(e)
			}
		}
	})
}
