package conntrack

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"pgregory.net/rapid"
)

// recording is what the kernel said of a port's zone on both sides of a migration, in messages and as conntrack(8) prints them.
type recording struct{ Source, Target recordedZone }

type recordedZone struct {
	Zone     Zone
	Entries  []string
	Messages []string
}

func recorded(t testing.TB) recording {
	t.Helper()
	text, err := os.ReadFile("../../test/kernel/testdata/conntrack.json")
	if err != nil {
		t.Fatal(err)
	}
	var r recording
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func (z recordedZone) decoded(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	for _, m := range z.Messages {
		b, err := hex.DecodeString(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// listed is an entry as conntrack(8) prints it, without what lives: how long, and who looks at it.
func listed(e Entry) string {
	names := map[Protocol]string{TCP: "tcp", UDP: "udp", SCTP: "sctp"}
	states := map[Protocol]map[uint8]string{TCP: {3: "ESTABLISHED "}, SCTP: {4: "ESTABLISHED "}}
	side := func(t Tuple) string {
		return fmt.Sprintf("src=%s dst=%s sport=%d dport=%d ", t.Src, t.Dst, t.SrcPort, t.DstPort)
	}
	out := names[e.Protocol] + " " + states[e.Protocol][e.TCP.State+e.SCTP.State] + side(e.Orig)
	if e.Status&SeenReply == 0 {
		out += "[UNREPLIED] "
	}
	out += side(e.Reply)
	if e.Status&Assured != 0 {
		out += "[ASSURED] "
	}
	return out + fmt.Sprintf("mark=%d zone=%d", e.Mark, e.Zone)
}

// printed is a line of conntrack(8)'s, as listed has it.
func printed(line string) string {
	words := strings.Fields(line)
	words = slices.DeleteFunc(words[2:], func(w string) bool {
		return strings.Trim(w, "0123456789") == "" || strings.HasPrefix(w, "use=")
	})
	return strings.Join(words, " ")
}

// TestParseRecorded: what is read of the kernel's messages is what conntrack(8) says of the same entries.
func TestParseRecorded(t *testing.T) {
	r := recorded(t)
	for name, z := range map[string]recordedZone{"source": r.Source, "target": r.Target} {
		var got, want []string
		for _, m := range z.decoded(t) {
			f, err := parse(m)
			if err != nil {
				t.Fatal(err)
			}
			if f.id == 0 || f.Timeout == 0 {
				t.Errorf("%s: an entry without an ID, or a timeout: %+v", name, f)
			}
			got = append(got, listed(f.Entry))
		}
		for _, line := range z.Entries {
			want = append(want, printed(line))
		}
		slices.Sort(got)
		slices.Sort(want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -conntrack(8) +parse:\n%s", name, d)
		}
	}
}

// TestCreateRecorded: what is asked for of a connection through a load balancer, attribute by attribute.
func TestCreateRecorded(t *testing.T) {
	for _, m := range recorded(t).Source.decoded(t) {
		f, err := parse(m)
		if err != nil {
			t.Fatal(err)
		}
		if f.Protocol != TCP || !f.natted() || f.Orig.Src.Is6() {
			continue
		}
		f.Orig.SrcPort, f.Reply.DstPort = 40000, 40000
		e, reason := f.moved(9)
		if reason != "" {
			t.Fatal(reason)
		}
		got := hex.EncodeToString(create(e).attrs)
		want := strings.Join(strings.Fields(`
			34000180 14000180 080001000af40004 080002000a60000a 1c000280 0500010006000000 060002009c400000 0600030000070000
			34000280 14000180 080001000a60000a 080002000af40004 1c000280 0500010006000000 0600020000070000 060003009c400000
			0600120000090000
			28000d80 080001000af40003 080002000af40003 14000380 0600010000070000 0600020000070000
			28000680 080001000af40004 080002000af40004 14000380 060001009c400000 060002009c400000
			080003000000000e 080007000006977f 0800080000000002
			30000480 2c000180 0500010003000000 0500020007000000 060004000bff0000 0500030007000000 060005000bff0000`), "")
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		return
	}
	t.Fatal("no entry of the recording is of a load balancer")
}

func TestParseRefuses(t *testing.T) {
	good := recorded(t).Source.decoded(t)[0]
	change := func(at int, b ...byte) []byte {
		out := slices.Clone(good)
		copy(out[at:], b)
		return out
	}
	unknown, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	unknown.TCP.State = 200
	headless := func(p Protocol) []byte { // tuples without addresses
		w := writer{0, 0, 0, 0}
		for _, kind := range []uint16{nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_REPLY} {
			w.nest(kind, func() { w.nest(nl.CTA_TUPLE_PROTO, func() { w.u8(nl.CTA_PROTO_NUM, uint8(p)) }) })
		}
		return w
	}
	for name, m := range map[string][]byte{
		"nothing":                              nil,
		"half a header":                        good[:2],
		"no attributes":                        good[:4],
		"the end is missing":                   good[:len(good)-1],
		"something is left over":               append(slices.Clone(good), 1, 0),
		"an attribute that is shorter than it": change(4, 3, 0),
		"an attribute longer than all":         change(4, 0xff, 0xff),
		"an address of IPv4 with five bytes":   change(12, 9),
		"a protocol in two bytes":              change(32, 6),
		"tuples of two protocols":              change(36, 17),
		"an unknown state of TCP":              asKernel(unknown),
		"no addresses":                         headless(TCP),
		"neither addresses nor a protocol":     headless(0),
	} {
		if _, err := parse(m); !errors.Is(err, errMessage) {
			t.Errorf("%s: error %v, want one that wraps %q", name, err, errMessage)
		}
	}
}

func TestParseWhatTheKernelSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := found{Entry: drawEntry(t), id: rapid.Uint32().Draw(t, "id")}
		m := asKernel(want)
		got, err := parse(m)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
		if z, err := zoneOf(m); err != nil || z != want.Zone {
			t.Fatalf("zone %d, %v, want %d", z, err, want.Zone)
		}
	})
}

// FuzzParse: whatever comes, it is an error or an entry that can be asked for again.
func FuzzParse(f *testing.F) {
	r := recorded(f)
	for _, m := range append(r.Source.decoded(f), r.Target.decoded(f)...) {
		f.Add(m)
	}
	f.Add(asKernel(found{Entry: Entry{Protocol: ICMPv6, Orig: Tuple{Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2"), ID: 1, Type: 128},
		Reply: Tuple{Src: netip.MustParseAddr("fd00::2"), Dst: netip.MustParseAddr("fd00::1"), ID: 1, Type: 129}, Zone: 3, Labels: Labels{1}}, id: 7}))
	f.Fuzz(func(t *testing.T, m []byte) {
		got, err := parse(m)
		if err != nil {
			if !errors.Is(err, errMessage) && !errors.Is(err, errProtocol) {
				t.Fatalf("error %v is of no kind", err)
			}
			return
		}
		again, err := parse(asKernel(got))
		if err != nil || again != got {
			t.Fatalf("%+v came back as %+v, %v", got, again, err)
		}
		if e, reason := got.moved(1); reason == "" {
			create(e)
		}
	})
}
