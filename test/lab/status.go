package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/supervise"
)

const statusTimeout = 3 * time.Second

// Status writes the state of the lab's machines, their services, and what the API server says of nodes.
func (l *Lab) Status(ctx context.Context, out io.Writer) error {
	nodes := l.nodeConditions(ctx)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "lab %s\t%s, cni %s\t%s\n", l.name(), l.IPFamily(), l.cni(), l.Kubeconfig())
	for _, name := range append([]string{hubName, outside}, l.NodeNames()...) {
		m := l.machine(name)
		if !m.Process.alive() {
			what := "not running: run godwit-lab up"
			if m.Stopped {
				what = "stopped: godwit-lab node start " + name
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", name, what, nodes[name])
			continue
		}
		_, _ = fmt.Fprintf(w, "%s\trunning, pid %d\t%s\n", name, m.Process.Pid, nodes[name])
		services, err := l.Services(name)
		if err != nil {
			_, _ = fmt.Fprintf(w, "\t%v\n", err)
		}
		for _, s := range slices.Sorted(maps.Keys(services)) {
			_, _ = fmt.Fprintf(w, "  %s\t%s\n", s, describe(services[s]))
		}
	}
	return w.Flush()
}

// Services is what a machine's supervisor knows of its services.
func (l *Lab) Services(machine string) (map[string]supervise.Status, error) {
	return supervise.ReadStatus(filepath.Join(l.machineDir(machine), "status.json"))
}

// crash is how a supervisor tells of a service that ended by a fault of its own; tests kill with other signals.
var crash = regexp.MustCompile(`killed by SIG(ABRT|BUS|FPE|ILL|SEGV|TRAP)`)

// Crashes are the lines in which supervisors of the lab have told of services that crashed, since the lab was made.
func (l *Lab) Crashes() ([]string, error) {
	var found []string
	for _, name := range append([]string{hubName, outside}, l.NodeNames()...) {
		b, err := os.ReadFile(l.path(logsDir, name, initLog))
		if err != nil {
			return nil, fmt.Errorf("look for services that crashed: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			if crash.MatchString(line) {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found, nil
}

func describe(s supervise.Status) string {
	what := "not running"
	switch {
	case s.Ready:
		what = "ready"
	case s.Pid != 0:
		what = "starting"
	}
	if s.Restarts > 0 {
		what += fmt.Sprintf(", %d restarts, the last after: %s", s.Restarts, strings.ReplaceAll(s.LastError, "\n", ": "))
	}
	return what
}

// nodeConditions says whether nodes are Ready, and of an API server that does not answer, why.
func (l *Lab) nodeConditions(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conditions := map[string]string{}
	client, err := l.Client()
	if err != nil {
		return map[string]string{hubName: err.Error()}
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return map[string]string{hubName: err.Error()}
	}
	for i := range list.Items {
		conditions[list.Items[i].Name] = "Ready"
		if why := lacks(&list.Items[i], time.Time{}, nodesReady); why != "" {
			conditions[list.Items[i].Name] = why
		}
	}
	return conditions
}

// LogNames lists the logs that CopyLog copies, as MACHINE/SERVICE.
func (l *Lab) LogNames() ([]string, error) {
	paths, err := filepath.Glob(l.path(logsDir, "*", "*.log"))
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(filepath.Dir(p))+"/"+strings.TrimSuffix(filepath.Base(p), ".log"))
	}
	return names, nil
}

// CopyLog copies a log, or its last lines if lines is not 0.
func (l *Lab) CopyLog(out io.Writer, name string, lines int) error {
	names, err := l.LogNames()
	if err != nil {
		return err
	}
	if !slices.Contains(names, name) {
		return fmt.Errorf("there is no log %s: the logs are %s", name, strings.Join(names, " "))
	}
	b, err := os.ReadFile(l.path(logsDir, name+".log"))
	if err != nil {
		return fmt.Errorf("read a log: %w", err)
	}
	if lines > 0 {
		all := bytes.SplitAfter(b, []byte("\n"))
		b = bytes.Join(all[max(0, len(all)-1-lines):], nil) // the last one is what follows the last newline
	}
	_, err = out.Write(b)
	return err
}

// Kubectl is the path of the lab's kubectl.
func (l *Lab) Kubectl() (string, error) {
	spec, err := boot.ReadSpec(l.specPath(hubName))
	if err != nil {
		return "", err
	}
	return filepath.Join(spec.Kubernetes, "kubectl"), nil
}
