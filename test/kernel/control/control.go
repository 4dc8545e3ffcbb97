// Package control runs commands and moves files in a virtual machine: HTTP over the network between it and the tests. The machine's first process serves it.
package control

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Port is where the server listens in the virtual machine.
const Port = 1024

// Paths of the server.
const (
	pathHello  = "/hello"
	pathRun    = "/run"
	pathStart  = "/start"
	pathSignal = "/signal"
	pathFile   = "/file"
)

// Command is a program to run in the virtual machine.
type Command struct {
	// Args are the program, found in the machine's PATH, and its arguments.
	Args []string `json:"args"`
	// Env are variables in addition to the usual ones.
	Env []string `json:"env,omitempty"`
	// Netns is the name of a network namespace; empty is the machine's own.
	Netns string `json:"netns,omitempty"`
	// Stdin is what the program reads.
	Stdin []byte `json:"stdin,omitempty"`
	// Log is the file that a started program's output is appended to.
	Log string `json:"log,omitempty"`
	// Restart makes a started program start again when it has ended, unless it was sent a signal.
	Restart bool `json:"restart,omitempty"`
}

// String is the command as one would type it.
func (c Command) String() string {
	s := strings.Join(c.Args, " ")
	if c.Netns != "" {
		s = c.Netns + "# " + s
	}
	return s
}

// Result is what became of a command.
type Result struct {
	Stdout []byte `json:"stdout"`
	Stderr []byte `json:"stderr"`
	// Status is the exit status; 128 and the signal if the program was killed by one.
	Status int `json:"status"`
}

// started is the answer to a start.
type started struct {
	ID int `json:"id"`
}

// ExitError is a command that ran and failed.
type ExitError struct {
	Command Command
	Result  Result
}

// Error says what the command said.
func (e *ExitError) Error() string {
	said := strings.TrimSpace(string(e.Result.Stderr) + "\n" + string(e.Result.Stdout))
	return fmt.Sprintf("in the virtual machine: %s: exit status %d: %s", e.Command, e.Result.Status, said)
}

func decode[T any](b []byte) (v T, err error) {
	err = json.Unmarshal(b, &v)
	return v, err
}
