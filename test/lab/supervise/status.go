package supervise

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// Status is what a supervisor knows of a service.
type Status struct {
	// Pid is in the supervisor's pid namespace; 0 when the service does not run.
	Pid int `json:"pid"`
	// Ready says that the service has been ready since its last start.
	Ready bool `json:"ready"`
	// Restarts counts the starts after the first.
	Restarts int `json:"restarts"`
	// LastError says how it ended last, or why it could not be started.
	LastError string `json:"lastError,omitempty"`
}

// ReadStatus reads a supervisor's status file.
func ReadStatus(path string) (map[string]Status, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the services' status: %w", err)
	}
	var s map[string]Status
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read the services' status in %s: %w", path, err)
	}
	return s, nil
}

// statusFile is written whole at every change. It informs; nothing is decided by it, so a failure to write it is ignored.
type statusFile struct {
	path string
	mu   sync.Mutex
	s    map[string]Status
}

func newStatusFile(path string) *statusFile { return &statusFile{path: path, s: map[string]Status{}} }

func (f *statusFile) change(name string, change func(*Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.s[name]
	change(&st)
	f.s[name] = st
	b, err := json.MarshalIndent(f.s, "", "  ")
	if err != nil {
		return
	}
	tmp := f.path + ".tmp"
	if os.WriteFile(tmp, b, 0o644) == nil {
		_ = os.Rename(tmp, f.path)
	}
}

func (f *statusFile) started(name string, pid int) {
	f.change(name, func(s *Status) { s.Pid, s.Ready = pid, false })
}

func (f *statusFile) ready(name string) { f.change(name, func(s *Status) { s.Ready = true }) }

func (f *statusFile) ended(name string, err error) {
	f.change(name, func(s *Status) {
		s.Pid, s.Ready = 0, false
		s.Restarts++
		if err != nil {
			s.LastError = err.Error()
		}
	})
}
