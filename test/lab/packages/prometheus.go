package packages

import (
	"context"
	"log/slog"
)

// prometheus is what looks at the lab's metrics, in the tests of dashboards and alerts.
func prometheus() set {
	return set{kind: "prometheus-packages", size: "25 MB", wanted: []want{{name: "prometheus", program: "prometheus"}}}
}

// EnsurePrometheus returns the tree with Prometheus and promtool, downloading and unpacking what is not cached yet (about 25 MB). It needs no privileges.
func EnsurePrometheus(ctx context.Context, log *slog.Logger) (*Root, error) {
	return prometheus().ensure(ctx, log)
}
