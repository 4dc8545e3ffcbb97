// Package prometheus runs Debian's Prometheus where it reaches a lab's nodes, to see what Godwit's dashboards and alerts see.
package prometheus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"

	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// address is where it listens, in the namespace that it runs in.
const address = "127.0.0.1:9090"

// startTimeout is how long it may take until it answers.
const startTimeout = time.Minute

// Config is what a Server looks at.
type Config struct {
	// Namespace is the path of the network namespace that it runs in.
	Namespace string
	// Dir is an empty directory for what it stores.
	Dir string
	// Targets are the addresses that it scrapes, HOST:PORT, by the name of their job.
	Targets map[string][]string
	// Interval between two scrapes, and between two evaluations of Rules, a rule file's path.
	Interval time.Duration
	Rules    string
	Log      *slog.Logger
}

// Server is a running Prometheus.
type Server struct {
	// API asks it.
	API  promv1.API
	cmd  *exec.Cmd
	said bytes.Buffer
	done chan error
}

// Start returns when it answers. It ends with Close, or with this process.
func Start(ctx context.Context, c Config) (*Server, error) {
	root, err := packages.EnsurePrometheus(ctx, c.Log)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(c.Dir, "prometheus.json")
	content, err := c.file()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, fmt.Errorf("configure Prometheus: %w", err)
	}
	s := &Server{done: make(chan error, 1)}
	//nolint:contextcheck // it outlives the call; Close ends it
	s.cmd = root.Command(context.WithoutCancel(ctx), "prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(c.Dir, "data"), "--web.listen-address="+address, "--log.level=warn")
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	go func() { s.done <- netns.Do(c.Namespace, s.cmd.Run) }() // on one thread from its start to its end: Pdeathsig is about the thread
	place := traffic.Place{Namespace: c.Namespace}
	client, err := api.NewClient(api.Config{Address: "http://" + address, RoundTripper: &http.Transport{DialContext: place.Dial}})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.API = promv1.NewAPI(client)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		_, err := s.API.Buildinfo(ctx)
		if err == nil {
			return s, nil
		}
		select {
		case err := <-s.done:
			return nil, fmt.Errorf("Prometheus ended: %w: %s", err, s.said.String())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("Prometheus does not answer: %w", err), s.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Close ends it.
func (s *Server) Close() error {
	if s.cmd.Process == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end Prometheus: %w", err)
	}
	if err := <-s.done; err != nil {
		return fmt.Errorf("Prometheus: %w: %s", err, s.said.String())
	}
	return nil
}

// file is its configuration: JSON is YAML.
func (c Config) file() ([]byte, error) {
	type group struct {
		Targets []string `json:"targets"`
	}
	type job struct {
		Name   string  `json:"job_name"`
		Groups []group `json:"static_configs"`
	}
	conf := struct {
		Global map[string]string `json:"global"`
		Rules  []string          `json:"rule_files,omitempty"`
		Jobs   []job             `json:"scrape_configs"`
	}{Global: map[string]string{"scrape_interval": c.Interval.String(), "scrape_timeout": c.Interval.String(), "evaluation_interval": c.Interval.String()}}
	if c.Rules != "" {
		conf.Rules = []string{c.Rules}
	}
	for name, targets := range c.Targets {
		conf.Jobs = append(conf.Jobs, job{name, []group{{targets}}})
	}
	b, err := json.Marshal(conf)
	if err != nil {
		return nil, fmt.Errorf("configure Prometheus: %w", err)
	}
	return b, nil
}

// CheckRules runs promtool's unit tests of rules.
func CheckRules(ctx context.Context, log *slog.Logger, file string) error {
	root, err := packages.EnsurePrometheus(ctx, log)
	if err != nil {
		return err
	}
	if out, err := root.Command(ctx, "promtool", "test", "rules", file).CombinedOutput(); err != nil {
		return fmt.Errorf("promtool test rules %s: %w\n%s", file, err, out)
	}
	return nil
}
