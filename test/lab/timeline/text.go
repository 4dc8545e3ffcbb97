package timeline

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// silences is the actor of the lines that say when probes stopped to arrive, and when they did again.
const silences Actor = "probes"

// WriteText writes the timeline: a line for each stage with milliseconds since zero, then what was interrupted, lost and kept.
func (m *Migration) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s → %s\n\n", m.subject(), m.Source, m.Target)
	rows := [][]string{{"ms", "who", "what", ""}}
	zero := m.zero()
	for _, s := range m.lines() {
		rows = append(rows, []string{millis(s.At.Sub(zero)), string(s.Actor), s.Name, s.Detail})
	}
	table(&b, rows, "  ")
	b.WriteString("\n")
	table(&b, m.summary(), "")
	_, err := io.WriteString(w, b.String())
	return err
}

// subject is the VM and its address.
func (m *Migration) subject() string {
	if m.Address == "" {
		return m.VM
	}
	return fmt.Sprintf("%s (%s)", m.VM, m.Address)
}

// lines are the stages and the ends of the silences.
func (m *Migration) lines() []Stage {
	all := m.stages()
	for i := range m.Directions {
		d := &m.Directions[i]
		if d.From.IsZero() {
			continue
		}
		all = append(all, Stage{At: d.From, Actor: silences, Name: "last arrival " + d.Name})
		if !d.Open {
			all = append(all, Stage{At: d.To, Actor: silences, Name: "first arrival " + d.Name, Detail: "after " + millis(d.Silence()) + " ms"})
		}
	}
	slices.SortStableFunc(all, func(a, b Stage) int { return a.At.Compare(b.At) })
	return all
}

func (m *Migration) summary() [][]string {
	var rows [][]string
	if m.Stop() > 0 {
		rows = append(rows, []string{"QEMU's own stop", millis(m.Stop()) + " ms", ""})
	}
	for i := range m.Directions {
		d := &m.Directions[i]
		var says []string
		if m.Stop() > 0 {
			says = append(says, millis(m.Beyond(d))+" ms beyond QEMU's stop")
		}
		says = append(says, fmt.Sprintf("a probe every %s", d.Interval))
		rows = append(rows, []string{"interruption " + d.Name, millis(d.Silence()) + " ms", strings.Join(append(says, d.notes()...), ", ")})
		if lost := d.Unanswered(); lost > 0 {
			rows = append(rows, []string{"  without any answer", millis(lost) + " ms", "probes sent later were answered, if late"})
		}
		if d.Quiet > 0 {
			rows = append(rows, []string{"  undisturbed, at worst", millis(d.Quiet) + " ms", "while nothing was done"})
		}
		if d.Elsewhere > d.Silence() {
			rows = append(rows, []string{"  elsewhere in the migration", millis(d.Elsewhere) + " ms", ""})
		}
	}
	for i := range m.Directions {
		d := &m.Directions[i]
		rows = append(rows, []string{"probes " + d.Name, thousands(d.Sent), fmt.Sprintf("%s lost, %s duplicated, %s reordered", thousands(d.Lost), thousands(d.Duplicated), thousands(d.Reordered))})
	}
	if c := m.Connections; c.Total > 0 {
		row := []string{"TCP connections kept", fmt.Sprintf("%d of %d", c.Kept, c.Total), ""}
		if c.Stall > 0 {
			row[2] = fmt.Sprintf("longest stall %s ms", millis(c.Stall))
		}
		rows = append(rows, row)
	}
	return rows
}

// table writes rows in columns, the first to the right in tables of stages, where indent is not empty, else the second.
func table(b *strings.Builder, rows [][]string, indent string) {
	right := 1
	if indent != "" {
		right = 0
	}
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, r := range rows {
		line := indent
		for i, cell := range r {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == right {
				line += pad + cell + "  "
			} else {
				line += cell + pad + "  "
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// millis is a time in milliseconds to a tenth, as exact as anything here is.
func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Round(100*time.Microsecond))/float64(time.Millisecond), 'f', 1, 64)
}

// grouped is millis with commas and a proper minus, for the picture.
func grouped(d time.Duration) string {
	if d < 0 {
		return "−" + grouped(-d)
	}
	whole, tenths, _ := strings.Cut(millis(d), ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return whole + "." + tenths
}

// thousands writes 12345 as 12,345.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
