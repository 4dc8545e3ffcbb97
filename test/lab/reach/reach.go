// Package reach asks every pod whether it reaches every other, and says so in a table.
package reach

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"

	"golang.org/x/sync/errgroup"
)

// Pod is one end: it runs the lab's echoserver, and probe runs in it.
type Pod struct {
	Namespace, Name, Node string
	IPs                   []netip.Addr
}

// Exec runs a command in a pod and returns what it prints on its standard output.
type Exec func(ctx context.Context, namespace, pod string, cmd ...string) (string, error)

// Failure is one pair that did not reach each other.
type Failure struct {
	From, To Pod
	IP       netip.Addr
	Reason   string
}

// String says it in a line.
func (f Failure) String() string {
	return fmt.Sprintf("%s (%s) does not reach %s (%s) at %s: %s", f.From.Name, f.From.Node, f.To.Name, f.To.Node, f.IP, f.Reason)
}

// Matrix is the result of asking all pairs.
type Matrix struct {
	Pods     []Pod
	Failures []Failure
	asked    map[cell]int
	failed   map[cell]int
}

type cell struct {
	from, to string // nodes
	ipv6     bool
}

// All asks every pod to reach every other on each of its addresses: an HTTP request, whose answer must name the asking pod's own address, so that nothing in
// between has translated it.
func All(ctx context.Context, exec Exec, pods []Pod) (*Matrix, error) {
	m := &Matrix{Pods: pods, asked: map[cell]int{}, failed: map[cell]int{}}
	results := make([]string, len(pods))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(6)
	for i, from := range pods {
		cmd := []string{"/bin/probe", "-timeout", "5s"}
		for _, to := range pods {
			for _, ip := range to.IPs {
				cmd = append(cmd, url(ip))
			}
		}
		g.Go(func() (err error) {
			results[i], err = exec(gctx, from.Namespace, from.Name, cmd...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, from := range pods {
		if err := m.read(from, results[i]); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func url(ip netip.Addr) string { return "http://" + net.JoinHostPort(ip.String(), "80") + "/" }

// read takes the lines that probe printed in from, one a target, in order.
func (m *Matrix) read(from Pod, out string) error {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, to := range m.Pods {
		for _, ip := range to.IPs {
			if len(lines) == 0 || !strings.Contains(lines[0], url(ip)) {
				return fmt.Errorf("probe in %s printed no line for %s:\n%s", from.Name, url(ip), out)
			}
			c := cell{from: from.Node, to: to.Node, ipv6: ip.Is6()}
			m.asked[c]++
			if reason := wrong(from, lines[0]); reason != "" {
				m.failed[c]++
				m.Failures = append(m.Failures, Failure{From: from, To: to, IP: ip, Reason: reason})
			}
			lines = lines[1:]
		}
	}
	return nil
}

// wrong says what is the matter with a line "ok TARGET TOOK CLIENT NAME"; empty when nothing is.
func wrong(from Pod, line string) string {
	f := strings.Fields(line)
	if f[0] != "ok" || len(f) < 4 {
		return line
	}
	client, err := netip.ParseAddr(f[3])
	if err != nil || !slices.Contains(from.IPs, client) {
		return fmt.Sprintf("it is seen as %s, want one of %v", f[3], from.IPs)
	}
	return ""
}

// Print writes a table: rows are the nodes of the asking pods, columns those of the answering ones, cells "reached/asked" for IPv4 and IPv6.
func (m *Matrix) Print(w io.Writer) error {
	nodes := map[string]int{}
	for _, p := range m.Pods {
		nodes[p.Node]++
	}
	var names []string
	for n := range nodes {
		names = append(names, n)
	}
	sort.Strings(names)
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprint(tw, "from \\ to")
	for _, n := range names {
		_, _ = fmt.Fprintf(tw, "\t%s (%d pods)", n, nodes[n])
	}
	_, _ = fmt.Fprintln(tw)
	for _, from := range names {
		_, _ = fmt.Fprint(tw, from)
		for _, to := range names {
			_, _ = fmt.Fprintf(tw, "\t%s", m.cell(from, to))
		}
		_, _ = fmt.Fprintln(tw)
	}
	return tw.Flush()
}

func (m *Matrix) cell(from, to string) string {
	var parts []string
	for _, v6 := range []bool{false, true} {
		c := cell{from: from, to: to, ipv6: v6}
		if n := m.asked[c]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d/%d", map[bool]string{false: "IPv4", true: "IPv6"}[v6], n-m.failed[c], n))
		}
	}
	return strings.Join(parts, ", ")
}

// Asked is the number of pairs, each family counted.
func (m *Matrix) Asked() int {
	n := 0
	for _, a := range m.asked {
		n += a
	}
	return n
}
