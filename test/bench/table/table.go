// Package table sums measurements up and prints them.
package table

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Row is one line: what was measured, and its figures by column.
type Row struct {
	Name   string             `json:"name"`
	Values map[string]float64 `json:"values"`
	// Samples are the single measurements, where there are any.
	Samples []float64 `json:"samples,omitempty"`
}

// Report is a benchmark's result.
type Report struct {
	Title string `json:"title"`
	// Unit is that of all values that are times.
	Unit    string   `json:"unit"`
	Columns []string `json:"columns"`
	Rows    []Row    `json:"rows"`
	Notes   []string `json:"notes,omitempty"`
}

// Quantiles is a row of n, p50, p90 and max of samples.
func Quantiles(name string, samples []float64) Row {
	return Row{Name: name, Samples: samples, Values: map[string]float64{
		"n": float64(len(samples)), "p50": Quantile(samples, 0.5), "p90": Quantile(samples, 0.9), "max": slices.Max(samples),
	}}
}

// Quantile is the smallest sample that at least the share q of all are not above. There must be one.
func Quantile(samples []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// Millis is a duration in milliseconds.
func Millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Print writes the table.
func (r Report) Print(w io.Writer) error {
	var lines strings.Builder
	fmt.Fprintf(&lines, "\t%s\t\n", strings.Join(r.Columns, "\t"))
	for _, row := range r.Rows {
		lines.WriteString(row.Name)
		for _, c := range r.Columns {
			lines.WriteString("\t" + row.cell(c))
		}
		lines.WriteString("\t\n")
	}
	if _, err := fmt.Fprintf(w, "%s (%s)\n\n", r.Title, r.Unit); err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	if _, err := io.WriteString(tw, lines.String()); err != nil {
		return err
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(r.Notes, "\n"))
	return err
}

// cell is a value as text: whole numbers without a fraction, nothing where there is none.
func (r Row) cell(column string) string {
	v, ok := r.Values[column]
	switch {
	case !ok:
		return ""
	case v == float64(int(v)):
		return fmt.Sprint(int(v))
	}
	return fmt.Sprintf("%.1f", v)
}

// Save writes the report to out/bench/NAME.json.
func (r Report) Save(name string) error { return Save(name, r) }

// Save writes a report, or whatever has one in it, to out/bench/NAME.json.
func Save(name string, report any) error {
	dir := filepath.Join("out", "bench")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("save the report: %w", err)
	}
	b, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("save the report: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the report: %w", err)
	}
	return nil
}

// LoadAverage is the machine's load, for a report's notes: others may use it too.
func LoadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}
