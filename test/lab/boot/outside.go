package boot

import (
	"context"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-cni/godwit/test/lab/echo"
	"github.com/godwit-cni/godwit/test/lab/supervise"
)

// runOutside is a host on the management network that is no node: it tells clients which address they come from, and has no route to pods.
func runOutside(ctx context.Context, log *slog.Logger, spec *Spec) error {
	if err := mountProc(); err != nil {
		return err
	}
	if _, err := usePackages(spec); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return newNetworker(log, spec).run(ctx, make(chan struct{})) })
	g.Go(func() error { return echo.Serve(ctx, echo.Config{TCP: ":7", UDP: ":7", HTTP: ":80", Name: spec.Name}) })
	iperf := supervise.Service{Name: "iperf3", Argv: []string{"iperf3", "-s"}}
	g.Go(func() error {
		return supervise.New(log, spec.Logs, spec.StatusFile()).Run(ctx, []supervise.Service{iperf})
	})
	return g.Wait()
}
