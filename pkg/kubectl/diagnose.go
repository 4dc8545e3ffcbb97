package kubectl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/pkg/otlp"
)

const (
	// again is the pause before a second look, if the first found something.
	again = 3 * time.Second
	// shown is how many faults of one check are printed.
	shown = 10
)

// diagnosis is what came of the checks.
type diagnosis struct {
	Time   time.Time `json:"time"`
	Checks []line    `json:"checks"`
	// OK, Warnings and Failures count lines.
	OK       int `json:"ok"`
	Warnings int `json:"warnings"`
	Failures int `json:"failures"`
}

// line is a verdict and the check that it is of.
type line struct {
	Check   string `json:"check"`
	Grade   grade  `json:"grade"`
	Finding string `json:"finding"`
	Remedy  string `json:"remedy,omitempty"`
	// Lasts is the finding without what changes while it lasts; empty where nothing does.
	Lasts string `json:"-"`
}

// write tells a person.
func (l line) write(w io.Writer) {
	say(w, "%-4s  %s", l.Grade, l.Finding)
	if l.Remedy != "" {
		say(w, "      → %s", l.Remedy)
	}
}

func (s *session) diagnoseCommand() *cobra.Command {
	var format, file string
	probe := true
	cmd := &cobra.Command{
		Use: "diagnose", Args: cobra.NoArgs,
		Short: "Everything against everything: Godwit's parts, the API, OVN's databases, each node's Open vSwitch",
		Long: `diagnose compares what all parts of the network say of themselves and of each other: whether Godwit's pods are ready and of one version, who leads, whether each node is a chassis
with its own address, an MTU as the others' and a tunnel to each of them; raft; what ports ask for, and whether that is what the API, both databases and the nodes have; certificates; other
networks that are in the way. A line each: ok, warn or fail, and what to do.
The agent on each node sends a packet as long as pods' to each other node through the tunnels, unless --probe=false.
What differs is looked at again after three seconds: what is under way is no fault. It exits with 1 if any line is not ok. It changes nothing.
It needs the rights to list pods, nodes, ports and portmigrations everywhere, and in the namespace of Godwit to get ConfigMaps and Leases, to create pods/exec, and with TLS to get Secrets,
of which it keeps when they expire. --report writes a file with the lines and what they are of, to attach to a bug: names and addresses are in it, keys are not.`,
		Example: "  kubectl ovn diagnose\n  kubectl ovn diagnose --report bug.txt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("-o %s: json is all that there is", format)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			return c.diagnose(cmd.Context(), request{ask: c.ask, out: cmd.OutOrStdout(), json: format == "json", report: file, probe: probe})
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json")
	cmd.Flags().BoolVar(&probe, "probe", true, "send packets through the tunnels")
	cmd.Flags().StringVar(&file, "report", "", "write a report for a bug into this file too")
	return cmd
}

// request is how a diagnosis is wanted.
type request struct {
	ask asker
	out io.Writer
	// json: not text.
	json bool
	// report is a file for a bug; none if empty.
	report string
	// probe: send packets through the tunnels.
	probe bool
}

// diagnose looks, looks again if something differs, and tells.
func (c cluster) diagnose(ctx context.Context, r request) error {
	f, err := c.lookFor(ctx, r)
	if err != nil {
		return err
	}
	d := examine(f)
	if d.Warnings+d.Failures > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(again):
		}
		if f, err = c.lookFor(ctx, r); err != nil {
			return err
		}
		d = lasting(d, examine(f))
	}
	if r.report != "" {
		if err := writeReport(r.report, f, d); err != nil {
			return err
		}
	}
	if r.json {
		if err := d.json(r.out); err != nil {
			return err
		}
	} else {
		d.print(folded(r.out))
	}
	return d.verdict()
}

// lookFor reads what was asked for.
func (c cluster) lookFor(ctx context.Context, r request) (*facts, error) {
	f, err := c.look(ctx, r.ask, time.Now())
	if err == nil && r.probe {
		c.tryTunnels(ctx, r.ask, f)
	}
	return f, err
}

// examine makes all checks.
func examine(f *facts) diagnosis {
	d := diagnosis{Time: f.now}
	for _, c := range checks() {
		well, wrong := c.look(f)
		if len(wrong) == 0 && well != "" {
			wrong = []verdict{{grade: fine, finding: well}}
		}
		for _, v := range wrong {
			d.Checks = append(d.Checks, v.of(c.name))
		}
	}
	d.count()
	return d
}

func (d *diagnosis) count() {
	d.OK, d.Warnings, d.Failures = 0, 0, 0
	for _, l := range d.Checks {
		switch l.Grade {
		case fine:
			d.OK++
		case rough:
			d.Warnings++
		case stuck:
			d.Failures++
		}
	}
}

// json tells a program.
func (d *diagnosis) json(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(d)
}

// print tells a person; of one check no more than a screen has room for.
func (d *diagnosis) print(w io.Writer) {
	count := map[string]int{}
	for i, l := range d.Checks {
		count[l.Check]++
		if count[l.Check] <= shown {
			l.write(w)
		}
		if last := i == len(d.Checks)-1 || d.Checks[i+1].Check != l.Check; last && count[l.Check] > shown {
			say(w, "      … and %d more of the kind: -o json has them", count[l.Check]-shown)
		}
	}
	say(w, "")
	say(w, "%d ok, %d warn, %d fail", d.OK, d.Warnings, d.Failures)
}

func (d *diagnosis) verdict() error {
	switch {
	case d.Failures > 0:
		return fmt.Errorf("something does not work: %d of %d lines fail", d.Failures, len(d.Checks))
	case d.Warnings > 0:
		return fmt.Errorf("something is not as it should be: %d of %d lines warn", d.Warnings, len(d.Checks))
	}
	return nil
}

// writeReport writes what a bug's reader wants to see.
func writeReport(file string, f *facts, d diagnosis) (err error) {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	var text strings.Builder
	f.report(&text, d)
	_, err = out.WriteString(text.String())
	if closing := out.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return fmt.Errorf("write the report %s: %w", file, err)
	}
	return nil
}

// report is the diagnosis with what it is of. Of Secrets there is nothing in facts but when they expire.
func (f *facts) report(w io.Writer, d diagnosis) {
	say(w, "Godwit, kubectl ovn diagnose, %s\n", d.Time.UTC().Format(time.RFC3339))
	for _, l := range d.Checks {
		say(w, "%-4s  %s: %s", l.Grade, l.Check, l.Finding)
	}
	say(w, "\n# Nodes")
	for i := range f.nodes {
		n := &f.nodes[i]
		say(w, "%s  kubelet %s  kernel %s  %s  annotations %v", n.Name, n.Status.NodeInfo.KubeletVersion, n.Status.NodeInfo.KernelVersion, n.Status.NodeInfo.OSImage, n.Annotations)
	}
	say(w, "\n# Godwit's pods")
	for i := range f.pods {
		p := &f.pods[i]
		if p.Namespace != f.system {
			continue
		}
		say(w, "%s on %s, %s", p.Name, filled(p.Spec.NodeName), p.Status.Phase)
		for _, c := range p.Status.ContainerStatuses {
			say(w, "  %s  ready %t  restarts %d  %s %s", c.Name, c.Ready, c.RestartCount, c.Image, c.ImageID)
		}
	}
	say(w, "\n# Settings")
	for _, k := range sortedKeys(f.settings) {
		say(w, "%s=%s", k, otlp.Shown(f.settings[k]))
	}
	say(w, "\n# Chassis")
	for _, c := range f.chassis {
		say(w, "%s  %s", c.name, strings.Join(c.ips, " "))
	}
	for _, from := range sortedKeys(f.echoes) {
		for _, to := range sortedKeys(f.echoes[from]) {
			say(w, "from %s to %s: %+v", from, to, f.echoes[from][to])
		}
	}
	for _, m := range f.members {
		say(w, "\n# %s at %s\n%s", m.database, m.pod, m.raw)
	}
	for _, node := range sortedKeys(f.switches) {
		s := f.switches[node]
		say(w, "\n# Open vSwitch on %s\n%v", node, s.ids)
		for _, i := range s.interfaces {
			say(w, "%s  type %q  ofport %d  error %q  remote %q  bfd %q  sent %d  received %d  %v", i.name, i.kind, i.port, i.trouble, i.remote, i.tested, i.sent, i.received, i.ids)
		}
	}
	say(w, "\n# Rows of the northbound database, and who claims them")
	for _, name := range sortedKeys(f.rows) {
		b := f.bindings[name]
		say(w, "%s  %s  %v  claimed by %s %s  up %t", name, strings.Join(f.rows[name].addresses, " "), f.rows[name].options, filled(b.chassis), strings.Join(b.more, " "), b.up)
	}
	say(w, "\n# Migrations that are not over")
	for i := range f.moves {
		if pm := &f.moves[i]; !pm.Status.Over() {
			say(w, "%s/%s  %s  %s → %s  %s %s", pm.Namespace, pm.Name, pm.Spec.VMI.Name, pm.Spec.Source.Node, pm.Spec.Target.Node, pm.Status.Phase, pm.Status.Message)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
