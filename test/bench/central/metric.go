package central

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"k8s.io/client-go/discovery"
)

// Metric sums a metric of the controller's over its labels.
func (r *Replica) Metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.metrics+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read the metrics of %s: %w", r.name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	sum := 0.0
	s := bufio.NewScanner(resp.Body)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if v, _, ok := sample(s.Text(), name); ok {
			sum += v
		}
	}
	return sum, s.Err()
}

// sample reads a line of the Prometheus text format if it is one of the metric.
func sample(line, name string) (value float64, labels string, ok bool) {
	rest, found := strings.CutPrefix(line, name)
	if !found || rest == "" || rest[0] != ' ' && rest[0] != '{' {
		return 0, "", false
	}
	at := strings.LastIndexByte(rest, ' ')
	value, err := strconv.ParseFloat(rest[at+1:], 64)
	return value, rest[:at], err == nil
}

// Writes counts by resource what was written to the API server by others than the bench itself and the API server: that is, by the controller.
func (c *Cluster) Writes(ctx context.Context) (map[string]float64, error) {
	cl, err := discovery.NewDiscoveryClientForConfig(c.REST)
	if err != nil {
		return nil, err
	}
	text, err := cl.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		v, labels, ok := sample(strings.TrimSuffix(line, "\n"), "apiserver_request_total")
		if !ok {
			continue
		}
		verb, resource := label(labels, "verb"), label(labels, "resource")
		switch {
		case verb != "POST" && verb != "PUT" && verb != "PATCH" && verb != "APPLY", resource == "":
		case verb == "POST" && (resource == "pods" || resource == "nodes" || resource == "namespaces"): // the bench
		default:
			out[resource] += v
		}
	}
	return out, nil
}

func label(labels, name string) string {
	_, rest, _ := strings.Cut(labels, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}
