// Package peer is how two agents speak of a migration that goes from the one's node to the other's: the source's agent connects to the target's. Both show their node's certificate, so that either
// knows which node it speaks with; what a node may say is for the Service to judge.
//
// On the wire (TLS 1.3) there are messages in JSON, each behind its length in four octets, the first of which is a hello. Every one is answered.
package peer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// Version of what is said. One side that has another is refused.
const Version = 1

// MaxMessage is the length of the longest message, in octets.
const MaxMessage = 64 << 10

// maxText is how much of an error is sent to the other side, in octets.
const maxText = 1 << 10

// Migration is what a connection is about.
type Migration struct {
	// Namespace is the VM's, UID the VirtualMachineInstanceMigration's.
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

// Kind is what a message says.
type Kind string

// The kinds of messages.
const (
	// Stopped: the migration has stopped the VM on the source.
	Stopped Kind = "stopped"
	// Resumed: it runs on the source again.
	Resumed Kind = "resumed"
	// Connections has some of the VM's, as the source's connection tracking knows them.
	Connections Kind = "connections"
	// Alive says nothing: the connection is there.
	Alive Kind = "alive"
)

// Message is what the source says.
type Message struct {
	Kind Kind `json:"kind"`
	// Ports that it is about, by the names of their LogicalSwitchPorts.
	Ports []string `json:"ports,omitempty"`
	// Zone of Connections: the name that OVN gives it on either node, a LogicalSwitchPort's or a datapath's with "_snat" or "_dnat" behind it.
	Zone string `json:"zone,omitempty"`
	// Entries of the zone, in pkg/conntrack's form.
	Entries []byte `json:"entries,omitempty"`
}

// Reply is what the target says to a message on which it has acted.
type Reply struct {
	// Again: not all of the Entries were taken, and some of those may be another time.
	Again bool `json:"again,omitempty"`
}

// hello begins a connection.
type hello struct {
	Version   int       `json:"version"`
	Migration Migration `json:"migration"`
}

// answer is that to a hello or to a message.
type answer struct {
	// Error says why what was said does not count; empty: it does.
	Error string `json:"error,omitempty"`
	Reply
}

func answerOf(r Reply, err error) answer {
	if err == nil {
		return answer{Reply: r}
	}
	text := err.Error()
	return answer{Error: text[:min(len(text), maxText)]}
}

// write sends one message.
func write(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("message of %d octets: want %d at most", len(b), MaxMessage)
	}
	// In one write, which is one record of TLS.
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil { //nolint:gosec // bounded above
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// read receives one message. No more than MaxMessage octets are kept, whatever the other side says.
func read(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxMessage {
		return fmt.Errorf("message of %d octets: want %d at most", size, MaxMessage)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	return nil
}
