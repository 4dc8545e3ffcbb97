package supervise

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestServicesStartInOrderAndAgain(t *testing.T) {
	dir := t.TempDir()
	marker := filepath.Join(dir, "marker")
	services := []Service{
		// Listed first and started last.
		{Name: "second", Argv: []string{"sh", "-c", "cat " + marker + " > " + dir + "/seen; exec sleep 60"}, Needs: []string{"first"}},
		{
			Name: "first", Argv: []string{"sh", "-c", "sleep 0.1; echo run >> " + marker + "; sleep 0.3"},
			Ready: func(context.Context) error { _, err := os.Stat(marker); return err },
		},
	}
	status := filepath.Join(dir, "status.json")
	s := New(slog.New(slog.NewTextHandler(t.Output(), nil)), dir, status)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, services) }()
	for ctx.Err() == nil {
		seen, _ := os.ReadFile(filepath.Join(dir, "seen"))
		runs, _ := os.ReadFile(marker)
		if string(seen) == "run\n" && strings.Count(string(runs), "run") >= 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Fatal("the second service did not see the first one's file, or the first was not started again")
	}
	st, err := ReadStatus(status)
	if err != nil {
		t.Fatal(err)
	}
	if st["first"].Restarts < 1 || st["first"].LastError == "" || !st["second"].Ready {
		t.Errorf("status = %+v, want a restart of first with its reason, and second ready", st)
	}
	// Not pid 1: end what runs by hand, as the kernel would.
	if p, err := os.FindProcess(st["second"].Pid); err == nil {
		_ = p.Kill()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUnknownNeedIsRefused(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler), t.TempDir(), filepath.Join(t.TempDir(), "status"))
	if err := s.Run(t.Context(), []Service{{Name: "a", Needs: []string{"b"}}}); err == nil || !strings.Contains(err.Error(), "needs b") {
		t.Errorf("Run = %v, want an error that names the missing need", err)
	}
}
