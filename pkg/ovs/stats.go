package ovs

import (
	"regexp"
	"strconv"
	"strings"
)

// What the daemons of OVN and Open vSwitch tell of themselves by their control sockets is text for people. These read it; a line that is not understood is left out, so that
// a newer daemon's is read as far as it is the same.

// Stopwatch is what a daemon measured of one of its tasks since it began, in seconds.
type Stopwatch struct {
	// Samples is how often.
	Samples float64
	// Max is the longest, P95 the 95th percentile; Recent and Average are moving averages over the last few runs and over the last hundred or so.
	Max, P95, Recent, Average float64
}

// ParseStopwatches reads stopwatch/show (lib/stopwatch.c), by the tasks' names.
func ParseStopwatches(said string) map[string]Stopwatch {
	out := map[string]Stopwatch{}
	name := ""
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if n, ok := strings.CutPrefix(line, "Statistics for '"); ok {
			name = strings.TrimSuffix(n, "'")
			out[name] = Stopwatch{}
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok || name == "" {
			continue
		}
		s := out[name]
		switch key {
		case "Total samples":
			s.Samples = number(value)
		case "Maximum":
			s.Max = seconds(value)
		case "95th percentile":
			s.P95 = seconds(value)
		case "Short term average":
			s.Recent = seconds(value)
		case "Long term average":
			s.Average = seconds(value)
		}
		out[name] = s
	}
	return out
}

// number is 0 for what is none.
func number(text string) float64 {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0
	}
	return n
}

// seconds reads a number and its unit.
func seconds(text string) float64 {
	value, unit, _ := strings.Cut(text, " ")
	return number(value) * map[string]float64{"msec": 1e-3, "usec": 1e-6, "nsec": 1e-9}[unit]
}

// EngineRuns is how often a node of the incremental engine was computed.
type EngineRuns struct {
	// Recomputed anew, Computed from what had changed, Canceled because the database was not ready.
	Recomputed, Computed, Canceled float64
}

// ParseEngine reads inc-engine/show-stats (OVN's lib/inc-proc-eng.c), by the nodes' names.
func ParseEngine(said string) map[string]EngineRuns {
	out := map[string]EngineRuns{}
	name := ""
	for line := range strings.Lines(said) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		r := out[name]
		switch key {
		case "Node":
			name = value
			r = EngineRuns{}
		case "- recompute":
			r.Recomputed = number(value)
		case "- compute":
			r.Computed = number(value)
		case "- abort", "- cancel": // before OVN 24.03, and since
			r.Canceled = number(value)
		}
		if name != "" {
			out[name] = r
		}
	}
	return out
}

// coverageLine is an event and how often it was counted.
var coverageLine = regexp.MustCompile(`^(\S+)\s+.*/sec\s+total: (\d+)$`)

// ParseCoverage reads coverage/show (lib/coverage.c), by the events' names. What never happened is not there.
func ParseCoverage(said string) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(said) {
		if m := coverageLine.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			out[m[1]] = number(m[2])
		}
	}
	return out
}

// Datapath is what forwards packets for ovs-vswitchd.
type Datapath struct {
	Name string
	// Hit, Missed and Lost count packets: those that a flow of the datapath took, those that ovs-vswitchd was asked about, and those of them that it had no time for.
	Hit, Missed, Lost float64
	// Flows there are now.
	Flows float64
}

// datapathLookups is dpctl/show's line of them.
var datapathLookups = regexp.MustCompile(`^lookups: hit:(\d+) missed:(\d+) lost:(\d+)$`)

// ParseDatapaths reads dpctl/show (lib/dpctl.c).
func ParseDatapaths(said string) []Datapath {
	var out []Datapath
	for line := range strings.Lines(said) {
		text := strings.TrimSpace(line)
		if !strings.HasPrefix(line, " ") && strings.HasSuffix(text, ":") {
			out = append(out, Datapath{Name: strings.TrimSuffix(text, ":")})
			continue
		}
		if len(out) == 0 {
			continue
		}
		d := &out[len(out)-1]
		if m := datapathLookups.FindStringSubmatch(text); m != nil {
			d.Hit, d.Missed, d.Lost = number(m[1]), number(m[2]), number(m[3])
		} else if n, ok := strings.CutPrefix(text, "flows: "); ok {
			d.Flows = number(n)
		}
	}
	return out
}

// FlowCare is how ovs-vswitchd looks after the flows of a datapath.
type FlowCare struct {
	// Limit is how many flows it allows now: less when a look at all of them takes long.
	Limit float64
	// Dump is how long the last look at all of them took, in seconds.
	Dump float64
}

var flowLimit = regexp.MustCompile(`\(limit (\d+)\)`)

// ParseUpcalls reads upcall/show (ofproto/ofproto-dpif-upcall.c), by the datapaths' names.
func ParseUpcalls(said string) map[string]FlowCare {
	out := map[string]FlowCare{}
	name := ""
	for line := range strings.Lines(said) {
		text := strings.TrimSpace(line)
		if !strings.HasPrefix(line, " ") && strings.HasSuffix(text, ":") {
			name = strings.TrimSuffix(text, ":")
			out[name] = FlowCare{}
			continue
		}
		c := out[name]
		if m := flowLimit.FindStringSubmatch(text); m != nil {
			c.Limit = number(m[1])
		} else if ms, ok := strings.CutPrefix(text, "dump duration : "); ok {
			c.Dump = number(strings.TrimSuffix(ms, "ms")) / 1e3
		}
		if name != "" {
			out[name] = c
		}
	}
	return out
}

var memoryUse = regexp.MustCompile(`([A-Za-z][^:]*):(\d+)`)

// ParseMemory reads memory/show (lib/memory.c): how many there are of what takes a daemon's memory.
func ParseMemory(said string) map[string]float64 {
	out := map[string]float64{}
	for _, m := range memoryUse.FindAllStringSubmatch(said, -1) {
		out[strings.TrimSpace(m[1])] = number(m[2])
	}
	return out
}

// ParseVersion reads version: the daemon's name, and its release in the first line (lib/util.c). It is empty where there is none.
func ParseVersion(said string) string {
	if words := strings.Fields(said); len(words) > 1 {
		return words[1]
	}
	return ""
}
