package kubectl

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// narrowest is the width below which lines are left alone, in columns: words would stand one by one.
const narrowest = 40

// folded is where a terminal's reader is told: lines that are longer than the terminal is wide go on below, between words, and under where their text began. What is no terminal gets
// lines as they are.
func folded(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < narrowest {
		return w
	}
	return &folder{out: w, width: width}
}

// folder folds lines.
type folder struct {
	out   io.Writer
	width int
	rest  []byte
}

// Write implements io.Writer. A line without an end waits for it.
func (f *folder) Write(b []byte) (int, error) {
	f.rest = append(f.rest, b...)
	end := bytes.LastIndexByte(f.rest, '\n') + 1
	var text strings.Builder
	for line := range strings.Lines(string(f.rest[:end])) {
		text.WriteString(fold(strings.TrimSuffix(line, "\n"), f.width) + "\n")
	}
	f.rest = f.rest[end:]
	if _, err := io.WriteString(f.out, text.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// lead is what stands before a line's text: an arrow, or a grade or a key with spaces behind it.
var lead = regexp.MustCompile(`^ *(→ |\S+ {2,})?`)

// fold breaks a line between words, at a width in columns. What is longer than that in one piece stays so.
func fold(line string, width int) string {
	first := lead.FindString(line)
	indent := strings.Repeat(" ", min(utf8.RuneCountInString(first), width/2))
	var out strings.Builder
	column := utf8.RuneCountInString(first)
	out.WriteString(first)
	for i, word := range strings.Split(line[len(first):], " ") {
		long := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+long > width:
			out.WriteString("\n" + indent)
			column = len(indent)
		default:
			out.WriteString(" ")
			column++
		}
		out.WriteString(word)
		column += long
	}
	return out.String()
}
