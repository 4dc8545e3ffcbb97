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
	s := slices.Sorted(slices.Values(samples))
	at := func(q float64) float64 { return s[min(len(s)-1, int(q*float64(len(s))))] }
	return Row{Name: name, Samples: samples, Values: map[string]float64{"n": float64(len(s)), "p50": at(0.5), "p90": at(0.9), "max": s[len(s)-1]}}
}

// Print writes the table.
func (r Report) Print(w io.Writer) error {
	fmt.Fprintf(w, "%s (%s)\n\n", r.Title, r.Unit)
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\t%s\t\n", strings.Join(r.Columns, "\t"))
	for _, row := range r.Rows {
		fmt.Fprint(tw, row.Name)
		for _, c := range r.Columns {
			v, ok := row.Values[c]
			switch {
			case !ok:
				fmt.Fprint(tw, "\t")
			case v == float64(int(v)):
				fmt.Fprintf(tw, "\t%d", int(v))
			default:
				fmt.Fprintf(tw, "\t%.1f", v)
			}
		}
		fmt.Fprintln(tw, "\t")
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\n%s", n)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// Save writes the report to out/bench/NAME.json.
func (r Report) Save(name string) error {
	dir := filepath.Join("out", "bench")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("save the report: %w", err)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("save the report: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the report: %w", err)
	}
	return nil
}
