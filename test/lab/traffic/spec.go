package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// MaxLength bounds a run, and with it what its result and its peer's record take in memory.
const MaxLength = 20 * time.Minute

const (
	minProbe, maxProbe = 40, 1400
	minInterval        = 500 * time.Microsecond
	maxInterval        = time.Second
	maxConnections     = 200
)

// Kind is what a connection does.
type Kind string

// Kinds of connections.
const (
	// Echo sends 64 bytes at every interval, which come back.
	Echo Kind = "echo"
	// Upload sends as fast as its rate allows; the peer counts and checks.
	Upload Kind = "upload"
	// Download receives as fast as its rate allows.
	Download Kind = "download"
)

// Ports are those of a server, on all of its addresses. A zero one is its usual number.
type Ports struct {
	// Echo (7) returns what it gets. Sink (9) reads. Source (19) sends. All three check and record the connections of runs, and serve anybody else's as the
	// protocols of old do; Source, though, says nothing to who does not ask as a run does.
	Echo   uint16 `json:"echo,omitempty"`
	Sink   uint16 `json:"sink,omitempty"`
	Source uint16 `json:"source,omitempty"`
	// Probe (7, UDP) returns datagrams and records those of runs.
	Probe uint16 `json:"probe,omitempty"`
	// Control (8007) is HTTP.
	Control uint16 `json:"control,omitempty"`
}

// Defaults fills in the usual numbers.
func (p *Ports) Defaults() {
	for port, usual := range map[*uint16]uint16{&p.Echo: 7, &p.Sink: 9, &p.Source: 19, &p.Probe: 7, &p.Control: ControlPort} {
		if *port == 0 {
			*port = usual
		}
	}
}

// ControlPort is the usual port of a server's HTTP control.
const ControlPort = 8007

// Spec says what a run does. What is zero is not done, apart from the fields that say otherwise.
type Spec struct {
	// ID is drawn by chance if zero.
	ID RunID `json:"id,omitzero"`
	// Peers are addresses of servers. Each gets probes of its own; connections go round.
	Peers []netip.Addr `json:"peers"`
	// Ports are those of all peers.
	Ports Ports `json:"ports,omitzero"`
	// Length ends the run by itself; zero is MaxLength.
	Length   Duration `json:"length,omitzero"`
	Probe    Probing  `json:"probe,omitzero"`
	Echo     Echoing  `json:"echo,omitzero"`
	Upload   Bulk     `json:"upload,omitzero"`
	Download Bulk     `json:"download,omitzero"`
	// Bucket is over how much time throughput is summed; zero is 100 ms.
	Bucket Duration `json:"bucket,omitzero"`
	// Silence is how long a connection may make no progress before it counts as broken; zero is 15 s.
	Silence Duration `json:"silence,omitzero"`
}

// Probing are UDP probes.
type Probing struct {
	// Interval is between two probes to one peer; zero sends none.
	Interval Duration `json:"interval,omitzero"`
	// Size is of the datagram; zero is 64 bytes.
	Size int `json:"size,omitempty"`
}

// Echoing are connections of kind Echo.
type Echoing struct {
	Connections int `json:"connections,omitempty"`
	// Interval is between two requests on one connection; zero is 50 ms.
	Interval Duration `json:"interval,omitzero"`
}

// Bulk are connections of kind Upload or Download.
type Bulk struct {
	Connections int `json:"connections,omitempty"`
	// Rate is in bytes a second for each connection; zero is 250,000.
	Rate int64 `json:"rate,omitempty"`
}

// Usual is what a migration is watched with: probes every 5 ms, eight echo connections, one bulk stream each way.
func Usual(peers ...netip.Addr) Spec {
	return Spec{
		Peers: peers, Probe: Probing{Interval: Duration{5 * time.Millisecond}},
		Echo: Echoing{Connections: 8}, Upload: Bulk{Connections: 1}, Download: Bulk{Connections: 1},
	}
}

// Defaults fills in what is zero and means something else.
func (s *Spec) Defaults() {
	if s.ID == 0 {
		s.ID = NewRunID()
	}
	s.Ports.Defaults()
	for d, usual := range map[*Duration]time.Duration{
		&s.Length: MaxLength, &s.Echo.Interval: 50 * time.Millisecond, &s.Bucket: 100 * time.Millisecond, &s.Silence: 15 * time.Second,
	} {
		if d.Duration == 0 {
			d.Duration = usual
		}
	}
	if s.Probe.Size == 0 {
		s.Probe.Size = 64
	}
	for _, b := range []*Bulk{&s.Upload, &s.Download} {
		if b.Rate == 0 {
			b.Rate = 250_000
		}
	}
}

// Validate reports everything that is wrong with a spec after Defaults.
func (s *Spec) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(s.Peers) > 0 && len(s.Peers) <= 16, "peers: %d addresses, want 1 to 16", len(s.Peers))
	for _, p := range s.Peers {
		check(p.IsValid(), "peers: an empty address")
	}
	check(s.Length.Duration > 0 && s.Length.Duration <= MaxLength, "length %s: want more than 0, at most %s", s.Length, MaxLength)
	if s.Probe.Interval.Duration != 0 {
		check(s.Probe.Interval.Duration >= minInterval && s.Probe.Interval.Duration <= maxInterval, "probe.interval %s: want %s to %s", s.Probe.Interval, minInterval, maxInterval)
		check(s.Probe.Size >= minProbe && s.Probe.Size <= maxProbe, "probe.size %d: want %d to %d bytes", s.Probe.Size, minProbe, maxProbe)
	}
	check(s.Echo.Interval.Duration >= time.Millisecond && s.Echo.Interval.Duration <= maxInterval, "echo.interval %s: want 1ms to %s", s.Echo.Interval, maxInterval)
	check(s.Bucket.Duration >= 10*time.Millisecond && s.Bucket.Duration <= 10*time.Second, "bucket %s: want 10ms to 10s", s.Bucket)
	check(s.Silence.Duration >= 100*time.Millisecond, "silence %s: want 100ms or more", s.Silence)
	n := 0
	for name, c := range map[string]int{"echo": s.Echo.Connections, "upload": s.Upload.Connections, "download": s.Download.Connections} {
		check(c >= 0, "%s.connections %d: want 0 or more", name, c)
		n += c
	}
	check(n <= maxConnections, "%d connections: want at most %d", n, maxConnections)
	check(n > 0 || s.Probe.Interval.Duration > 0, "neither connections nor a probe.interval: there is nothing to do")
	for name, b := range map[string]Bulk{"upload": s.Upload, "download": s.Download} {
		check(b.Rate > 0 && b.Rate <= 1<<30, "%s.rate %d: want 1 to %d bytes a second", name, b.Rate, 1<<30)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("traffic spec: %w", err)
	}
	return nil
}
