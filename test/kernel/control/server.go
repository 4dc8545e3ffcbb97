package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/godwit-cni/godwit/test/lab/netns"
)

// NamespaceDir is where named network namespaces are, as ip-netns(8) makes them.
const NamespaceDir = "/run/netns"

// maxCommand bounds the JSON of a command, whose input it contains.
const maxCommand = 16 << 20

// restartAfter is how long after its end a program is started again.
const restartAfter = time.Second

// Server runs commands. Its methods are safe for concurrent use.
type Server struct {
	log *slog.Logger

	mu sync.Mutex
	// running are the programs that were started, by what Start has returned.
	running map[int]*program
}

// NewServer returns a server that logs the ends of programs.
func NewServer(log *slog.Logger) *Server { return &Server{log: log, running: map[int]*program{}} }

// Handler serves a Client's requests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathHello, func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST "+pathRun, answer(s.run))
	mux.HandleFunc("POST "+pathStart, answer(s.start))
	mux.HandleFunc("POST "+pathSignal, answer(s.signal))
	mux.HandleFunc("GET "+pathFile, answer(s.read))
	mux.HandleFunc("PUT "+pathFile, answer(s.write))
	mux.HandleFunc("POST "+pathDial, s.dial)
	return mux
}

// answer sends what f returns: bytes as they are, anything else as JSON.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		b, ok := v.([]byte)
		if !ok {
			if b, err = json.Marshal(v); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		_, _ = w.Write(b) // a client that has gone is not told
	}
}

func command(r *http.Request) (Command, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxCommand))
	if err != nil {
		return Command{}, err
	}
	c, err := decode[Command](b)
	if err == nil && len(c.Args) == 0 {
		err = errors.New("the command is empty")
	}
	return c, err
}

func (c Command) process(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdin = bytes.NewReader(c.Stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	return cmd
}

// begin starts a process in the command's network namespace.
func (c Command) begin(cmd *exec.Cmd) error {
	if c.Netns == "" {
		return cmd.Start()
	}
	return netns.Do(filepath.Join(NamespaceDir, c.Netns), cmd.Start)
}

// run runs a program to its end, or until the client goes.
func (s *Server) run(r *http.Request) (any, error) {
	c, err := command(r)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := c.process(r.Context())
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := c.begin(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", c, err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("run %s: %w", c, err)
	}
	return Result{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Status: status(cmd.ProcessState)}, nil
}

func status(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}

// program is one that was started.
type program struct {
	command Command

	mu sync.Mutex
	// process is the one that runs, or ran last.
	process *os.Process
	// told: it was sent a signal, and is not started again.
	told bool
}

// launch starts the program's process.
func (p *program) launch(ctx context.Context) (*exec.Cmd, error) {
	out, err := os.OpenFile(p.command.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: open its log: %w", p.command, err)
	}
	defer func() { _ = out.Close() }()
	cmd := p.command.process(ctx)
	cmd.Stdout, cmd.Stderr = out, out
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told {
		return nil, nil
	}
	if err := p.command.begin(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.command, err)
	}
	p.process = cmd.Process
	return cmd, nil
}

// start starts a program that outlives the request.
func (s *Server) start(r *http.Request) (any, error) {
	c, err := command(r)
	if err != nil {
		return nil, err
	}
	ctx := context.WithoutCancel(r.Context())
	p := &program{command: c}
	cmd, err := p.launch(ctx)
	if err != nil {
		return nil, err
	}
	id := cmd.Process.Pid
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[id] = p
	go func() {
		s.keep(ctx, p, cmd)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, id)
	}()
	return started{ID: id}, nil
}

// keep waits for a program's end, and for those of the processes that take its place.
func (s *Server) keep(ctx context.Context, p *program, cmd *exec.Cmd) {
	for cmd != nil {
		err := cmd.Wait()
		s.log.Info("a program has ended", "command", p.command.String(), "error", err)
		if !p.command.Restart {
			return
		}
		time.Sleep(restartAfter)
		if cmd, err = p.launch(ctx); err != nil {
			s.log.Error("a program is not restarted", "command", p.command.String(), "error", err)
			return
		}
	}
}

// signal sends a signal to a program that was started; one that has ended gets none.
func (s *Server) signal(r *http.Request) (any, error) {
	id, perr := strconv.Atoi(r.FormValue("id"))
	sig, serr := strconv.Atoi(r.FormValue("signal"))
	if err := errors.Join(perr, serr); err != nil {
		return nil, err
	}
	s.mu.Lock()
	p := s.running[id]
	s.mu.Unlock()
	if p == nil {
		return struct{}{}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = true
	if err := p.process.Signal(syscall.Signal(sig)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("signal %s: %w", p.command, err)
	}
	return struct{}{}, nil
}

func (s *Server) read(r *http.Request) (any, error) { return os.ReadFile(r.FormValue("path")) }

func (s *Server) write(r *http.Request) (any, error) {
	path := r.FormValue("path")
	mode, err := strconv.ParseUint(r.FormValue("mode"), 8, 32)
	if err != nil {
		return nil, fmt.Errorf("mode of %s: %w", path, err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return struct{}{}, os.WriteFile(path, b, os.FileMode(mode))
}
