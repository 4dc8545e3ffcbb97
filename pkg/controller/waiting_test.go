package controller

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
)

// Databases that nobody serves do not end the controller, nor let the kubelet end it: it lives, is not ready, and says why; and it ends when it is told to.
func TestWaitsForDatabases(t *testing.T) {
	c := Defaults()
	gone, health := unused(t), unused(t)
	c.NBEndpoints, c.SBEndpoints = []string{"tcp:" + gone}, []string{"tcp:" + gone}
	c.HealthAddress, c.Logger, c.Registerer = health, slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c, &rest.Config{}) }()
	var code int
	var said string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && !strings.Contains(said, gone); time.Sleep(10 * time.Millisecond) {
		code, said = ask(t, health, "readyz")
	}
	if code != http.StatusServiceUnavailable || !strings.Contains(said, gone) {
		t.Errorf("readyz: %d %q, want 503 and the database's address, %s", code, said, gone)
	}
	if code, _ := ask(t, health, "healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d, want 200", code)
	}
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("told to end: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it was told to end and did not")
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", health)
	if err != nil {
		t.Fatalf("the manager could not listen: %v", err)
	}
	_ = l.Close()
}

func TestWaitingSaysWhichAddressIsTaken(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := newWaiting(t.Context(), Config{HealthAddress: l.Addr().String()}); err == nil || !strings.Contains(err.Error(), "--health-address "+l.Addr().String()) {
		t.Errorf("%v: want an error that names the flag and the address", err)
	}
}

// unused is an address on which nobody listens.
func unused(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// ask is 0 while nobody answers.
func ask(t *testing.T, address, path string) (code int, said string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s/%s", address, path), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}
