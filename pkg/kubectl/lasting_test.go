package kubectl

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/raft"
)

// TestDiagnoseLasting: what only one of two looks finds was under way.
func TestDiagnoseLasting(t *testing.T) {
	at := func(lines ...line) diagnosis { return diagnosis{Checks: lines} }
	stays, comes := line{Check: "pins", Grade: stuck, Finding: "a is wrong", Remedy: "x"}, line{Check: "pins", Grade: stuck, Finding: "b is wrong", Remedy: "x"}
	other := line{Check: "mtu", Grade: fine, Finding: "all is well"}
	for name, c := range map[string]struct{ first, second, want diagnosis }{
		"stays":        {at(stays, other), at(stays, comes, other), at(stays, other)},
		"came":         {at(other), at(comes, other), at(line{Check: "pins", Grade: fine, Finding: "what differed was under way"}, other)},
		"went":         {at(stays, other), at(other), at(other)},
		"one and one":  {at(stays), at(comes), at(line{Check: "pins", Grade: fine, Finding: "what differed was under way"})},
		"order is not": {at(comes, stays), at(stays, comes), at(stays, comes)},
	} {
		got := lasting(c.first, c.second)
		if diff := cmp.Diff(c.want.Checks, got.Checks); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestDiagnoseLastingFigures: a fault that has another time, another count or another reason at the second look is the same one; a pod that starts is none.
func TestDiagnoseLastingFigures(t *testing.T) {
	look := func(after time.Duration, controller, agent, central string) *facts {
		f := recordedFacts(t, func(ctx context.Context, pod, container string, args ...string) (string, error) {
			if pod == "ovs-node-hhqrh" {
				return "", errors.New(controller)
			}
			return recordedDaemons(t)(ctx, pod, container, args...)
		})
		f.now = f.now.Add(time.Minute + after)
		for i := range f.members {
			f.members[i].Servers = append([]raft.Server(nil), f.members[i].Servers...)
			for j := range f.members[i].Servers {
				f.members[i].Servers[j].Silent = 25*time.Second + after
			}
		}
		for node, s := range f.switches {
			s.controller = controller
			for i := range s.interfaces {
				if s.interfaces[i].remote != "" {
					s.interfaces[i].sent, s.interfaces[i].received = 500+int(after/time.Second), 0
				}
			}
			f.switches[node] = s
		}
		for name, why := range map[string]string{"agent": agent, "ovn-central": central} {
			p := f.component(name)[0]
			p.Status.Conditions, p.Status.ContainerStatuses[0].State = nil, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: why}}
			if why == "" {
				p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}
			}
		}
		return f
	}
	first := examine(look(0, "2026-11-22T04:29:50Z|00001|unixctl|WARN|failed", "", "ContainerCreating"))
	d := lasting(first, examine(look(3*time.Second, "2026-11-22T04:29:53Z|00001|unixctl|WARN|failed", "CrashLoopBackOff", "")))
	text := d.text()
	for _, want := range []string{
		"fail  pod godwit-agent-ckdht of agent on node2 is not ready: container agent: CrashLoopBackOff\n",
		"fail  the controller on node2 led, and has not said so for 1m4s\n",
		"fail  ovn-controller on node1: 2026-11-22T04:29:53Z|00001|unixctl|WARN|failed\n",
		"warn  node1 has sent 503 packets to node2 and received none\n",
		" for 28s\n      → docs/runbooks.md, GodwitRaftMemberAway\n",
		"fail  container vswitchd of pod ovs-node-hhqrh could not be looked at: 2026-11-22T04:29:53Z|00001|unixctl|WARN|failed\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "of ovn-central") || strings.Contains(text, "under way") || strings.Contains(text, passingMark) {
		t.Error(text)
	}
}
