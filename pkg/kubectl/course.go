package kubectl

import (
	"regexp"
	"strconv"
	"strings"
)

// course is what ovn-trace(8) says that becomes of a packet: its logical flows, pipeline by pipeline, in order.
type course struct {
	legs []leg
	// problems are what ovn-trace could not follow.
	problems []string
}

// leg is a packet's way through one pipeline of a switch or router.
type leg struct {
	// egress says that it is the second pipeline, in which the packet has an outport already.
	egress          bool
	datapath        string
	inport, outport string
	flows           []logicalFlow
	delivered       bool
}

// logicalFlow is one that matched.
type logicalFlow struct {
	stage    string
	priority int
	// id is the first eight digits of its UUID in SB.
	id, match string
	actions   []string
}

var (
	pipelineLine = regexp.MustCompile(`^\s*(ingress|egress)\(dp="([^"]*)"(?:, inport="([^"]*)")?(?:, outport="([^"]*)")?\)$`)
	// A stage has its number, its name, the line of northd's source where it has one, and what matched.
	flowLine   = regexp.MustCompile(`^\s*\d+\. (\w+)(?: \([^)]*:\d+\))?: (.*), priority (\d+), uuid ([0-9a-f]{8})$`)
	missLine   = regexp.MustCompile(`^\s*\d+\. (\w+)(?: \([^)]*\))?: no match`)
	outputLine = regexp.MustCompile(`^\s*/\* output to "([^"]*)", type "([^"]*)" \*/$`)
)

// parseCourse reads ovn-trace's detailed text.
func parseCourse(text string) course {
	var c course
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if m := pipelineLine.FindStringSubmatch(line); m != nil {
			c.legs = append(c.legs, leg{egress: m[1] == "egress", datapath: m[2], inport: m[3], outport: m[4]})
			continue
		}
		if len(c.legs) == 0 {
			continue // the packet itself
		}
		last := &c.legs[len(c.legs)-1]
		last.read(line)
		if problem, ok := strings.CutPrefix(strings.TrimSpace(line), "*** "); ok {
			c.problems = append(c.problems, problem)
		}
	}
	return c
}

// read takes one line of a pipeline.
func (p *leg) read(line string) {
	if m := flowLine.FindStringSubmatch(line); m != nil {
		priority, _ := strconv.Atoi(m[3]) // digits
		p.flows = append(p.flows, logicalFlow{stage: m[1], match: m[2], priority: priority, id: m[4]})
		return
	}
	if m := missLine.FindStringSubmatch(line); m != nil {
		p.flows = append(p.flows, logicalFlow{stage: m[1], actions: []string{"drop;"}})
		return
	}
	if m := outputLine.FindStringSubmatch(line); m != nil {
		p.delivered = m[2] != "patch"
		return
	}
	action := strings.TrimSpace(line)
	if n := len(p.flows); n > 0 && action != "" && !strings.HasPrefix(action, "---") {
		p.flows[n-1].actions = append(p.flows[n-1].actions, action)
	}
}

// Priorities of logical flows that are ACLs of NB (northd.c): an ACL's own is at most 32767, and 1000 are added. What northd adds by itself is below or above.
const (
	aclOffset = 1000
	aclMost   = 32767 + aclOffset
)

// acl says whether a logical flow is an ACL.
func (f logicalFlow) acl() bool {
	stage := strings.TrimPrefix(strings.TrimPrefix(f.stage, "ls_in_"), "ls_out_")
	return strings.HasPrefix(stage, "acl") && stage != "acl_hint" && stage != "acl_action" && f.priority > aclOffset && f.priority <= aclMost
}

// refused is the logical flow that answered in the place of whom the packet is for, nil if none did.
func (c course) refused() *logicalFlow {
	for i := range c.legs {
		for j := range c.legs[i].flows {
			if f := &c.legs[i].flows[j]; f.rejects() {
				return f
			}
		}
	}
	return nil
}

// last is the logical flow at which the packet ended, and the leg; nil where nothing was traced.
func (c course) last() (*leg, *logicalFlow) {
	for i := len(c.legs) - 1; i >= 0; i-- {
		if l := &c.legs[i]; len(l.flows) > 0 {
			return l, &l.flows[len(l.flows)-1]
		}
	}
	return nil, nil
}

// rejects says whether a logical flow answers in the place of whom the packet is for.
func (f logicalFlow) rejects() bool {
	for _, a := range f.actions {
		if strings.HasPrefix(a, "reject {") {
			return true
		}
	}
	return false
}

var backendsAction = regexp.MustCompile(`^ct_lb(?:_mark)?\(backends=([^;)]*)`)

// backends are those between which a logical flow of a load balancer chooses; nil if it is none.
func (f logicalFlow) backends() []string {
	for _, a := range f.actions {
		if m := backendsAction.FindStringSubmatch(a); m != nil {
			return strings.Split(m[1], ",")
		}
	}
	return nil
}

// acls are the ACLs that the packet met.
func (c course) acls() []logicalFlow {
	var out []logicalFlow
	for _, p := range c.legs {
		for _, f := range p.flows {
			if f.acl() {
				out = append(out, f)
			}
		}
	}
	return out
}

// output is the logical port that the packet left by, empty if it did not.
func (c course) output() string {
	for _, p := range c.legs {
		if p.delivered {
			return p.outport
		}
	}
	return ""
}
