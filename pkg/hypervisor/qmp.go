package hypervisor

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
)

// maxLine is the longest line that is taken of QEMU, in bytes. Its greeting and events have some hundred.
const maxLine = 64 << 10

// qmp is a monitor of QEMU's (docs/interop/qmp-spec there), one JSON object a line.
type qmp struct {
	conn  net.Conn
	lines *bufio.Scanner
	// leaving: a migration is under way that takes the VM elsewhere.
	leaving bool
}

func newQMP(conn net.Conn) source {
	q := &qmp{conn: conn, lines: bufio.NewScanner(conn)}
	q.lines.Buffer(nil, maxLine)
	return q
}

// line is what QEMU says, as far as it matters here.
type line struct {
	Event  string `json:"event"`
	Return *struct {
		Status string `json:"status"`
	} `json:"return"`
	Error *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Data struct {
		Status string `json:"status"`
	} `json:"data"`
}

func (q *qmp) begin() error {
	if _, err := q.read(); err != nil { // the greeting
		return fmt.Errorf("read QEMU's greeting: %w", err)
	}
	for _, command := range []string{"qmp_capabilities", "query-migrate"} {
		if _, err := fmt.Fprintf(q.conn, "{\"execute\":%q}\n", command); err != nil {
			return fmt.Errorf("send %s to QEMU: %w", command, err)
		}
		if err := q.answer(command); err != nil {
			return err
		}
	}
	return nil
}

// answer waits for that to a command. What an earlier migration came to is told by query-migrate too.
func (q *qmp) answer(command string) error {
	for {
		l, err := q.read()
		switch {
		case err != nil:
			return fmt.Errorf("read QEMU's answer to %s: %w", command, err)
		case l.Error != nil:
			return fmt.Errorf("QEMU refuses %s: %q", command, l.Error.Desc)
		case l.Return != nil:
			q.leaving = leaving(l.Return.Status)
			return nil
		}
		q.take(l)
	}
}

func (q *qmp) next() (Event, error) {
	l, err := q.read()
	if err != nil {
		return 0, err
	}
	return q.take(l), nil
}

// take is the event of a line. QEMU does not say why it stops the VM: while a migration is under way it is the migration.
func (q *qmp) take(l line) Event {
	switch l.Event {
	case "MIGRATION":
		q.leaving = leaving(l.Data.Status)
	case "STOP":
		if q.leaving {
			return Stopped
		}
	case "RESUME":
		return Resumed
	}
	return 0
}

// leaving says of a migration's status (qapi/migration.json) whether it takes the VM elsewhere.
func leaving(status string) bool {
	switch status {
	case "active", "postcopy-active", "pre-switchover", "device", "wait-unplug":
		return true
	}
	return false
}

func (q *qmp) read() (line, error) {
	var l line
	if !q.lines.Scan() {
		if err := q.lines.Err(); err != nil {
			return l, err
		}
		return l, net.ErrClosed
	}
	if err := json.Unmarshal(q.lines.Bytes(), &l); err != nil {
		return l, fmt.Errorf("read what QEMU says: %w", err)
	}
	return l, nil
}
