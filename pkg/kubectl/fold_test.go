package kubectl

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFold(t *testing.T) {
	for line, want := range map[string]string{
		"":      "",
		"short": "short",
		"warn  the tunnel between node1 and node2 carries little": "warn  the tunnel between\n      node1 and node2\n      carries little",
		"      → raise the MTU, or lower it → kubectl":            "      → raise the MTU,\n        or lower it →\n        kubectl",
		"a plain line that is too long for it":                    "a plain line that is too\nlong for it",
		"ok    averylongwordthatdoesnotfitanywhere and more":      "ok    averylongwordthatdoesnotfitanywhere\n      and more",
		"  switch subnet/default, from pod shop/web":              "  switch subnet/default,\n  from pod shop/web",
	} {
		if got := fold(line, 24); got != want {
			t.Errorf("%q:\n%s\nwant\n%s", line, got, want)
		}
	}
}

// All that check prints fits into 80 columns of a terminal; what is no terminal gets it unchanged.
func TestFolder(t *testing.T) {
	var plain, narrow bytes.Buffer
	p := ready()
	p.ports[0].Status.Node, p.last = "node3", nil
	d := p.judge()
	if d.write(&plain); d.moves() == nil {
		t.Error("nothing is wrong")
	}
	if folded(&plain) != &plain {
		t.Error("what is no terminal is folded")
	}
	f := &folder{out: &narrow, width: 80}
	for i := range plain.Bytes() { // in whatever pieces it comes
		if _, err := f.Write(plain.Bytes()[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(narrow.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if a, b := strings.Fields(plain.String()), strings.Fields(narrow.String()); strings.Join(a, " ") != strings.Join(b, " ") || plain.String() == narrow.String() {
		t.Errorf("folded:\n%s", narrow.String())
	}
}
