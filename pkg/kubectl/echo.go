package kubectl

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/errand"
)

// probeTimeout bounds the probe of all tunnels of a node: an agent gives each six seconds at most, and asks 32 at once.
const probeTimeout = time.Minute

// probe is what one node's agent is to send to others.
type probe struct {
	// to are nodes by their address on the join network; size is of the packets, in bytes.
	to   map[netip.Addr]string
	size int
}

// probeOf is a probe of nodes. One that has no address yet is not among them.
func probeOf(nodes []*corev1.Node, size int) probe {
	p := probe{to: map[netip.Addr]string{}, size: max(size, v1alpha1.MinMTU)}
	for _, n := range nodes {
		if join, err := v1alpha1.ParseJoin(n.Annotations[v1alpha1.JoinAnnotation]); err == nil {
			p.to[join.IPs[0].Addr()] = n.Name
		}
	}
	return p
}

// run has an agent send the packets, and returns what became of them, by node.
func (p probe) run(ctx context.Context, ask asker, agent string) (map[string][]errand.Echo, error) {
	out := map[string][]errand.Echo{}
	if len(p.to) == 0 {
		return out, nil
	}
	args := []string{"godwit-agent", "echo", "--size", strconv.Itoa(p.size), "--"}
	for _, a := range slices.SortedFunc(maps.Keys(p.to), netip.Addr.Compare) {
		args = append(args, a.String())
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	said, err := ask(ctx, agent, agentComponent, args...)
	if err != nil {
		return nil, err
	}
	var all []errand.Echo
	if err := json.Unmarshal([]byte(said), &all); err != nil {
		return nil, fmt.Errorf("read what agent %s says: %w: is it of this Godwit's version? kubectl ovn --version", agent, err)
	}
	for _, e := range all {
		out[p.to[e.To]] = append(out[p.to[e.To]], e)
	}
	return out, nil
}

// lost says what is wrong with a tunnel by what became of packets that were sent through it, the longest first; both are empty if nothing is.
func lost(from, to string, all []errand.Echo) (finding, remedy string) {
	switch i := slices.IndexFunc(all, errand.Echo.Answered); {
	case len(all) == 0:
		return fmt.Sprintf("%s has no address to which a packet could be sent (annotation %s)", to, v1alpha1.JoinAnnotation), "godwit-controller writes it: its log"
	case i < 0:
		return fmt.Sprintf("nothing comes back from %s of what %s sends through the tunnel", to, from),
			"a firewall between the nodes must let UDP port 6081 through, both ways; is ovn-controller of both at work? kubectl ovn diagnose"
	case i > 0:
		return fmt.Sprintf("the tunnel between %s and %s carries packets of %d bytes, and not those of %d, as pods send them", from, to, all[i].Size, all[0].Size),
			"something between the nodes carries less than their own links: raise its MTU, or set GODWIT_MTU to what it carries and make the pods anew"
	}
	return "", ""
}

// probe has the agent on the VM's node send packets to the nodes that can take it.
func (c cluster) probe(ctx context.Context, p *preflight) {
	candidates := p.candidates()
	if p.vmi.Status.NodeName == "" || len(candidates) == 0 {
		return
	}
	in, err := c.agentOn(ctx, p.vmi.Status.NodeName)
	if err == nil {
		p.echoes, err = probeOf(candidates, p.mtu).run(ctx, c.ask, in.pod.Name)
	}
	p.unsent = err
}

// tunnels: what the VM's node sends to the candidates comes back, in packets as long as the VM's.
func (p preflight) tunnels() []verdict {
	if p.unsent != nil {
		return []verdict{{rough, fmt.Sprintf("whether the tunnels carry could not be tried: %v", p.unsent), "what it says; or --probe=false does without"}}
	}
	if p.echoes == nil {
		return nil
	}
	var out []verdict
	var well []string
	size := 0
	for _, n := range p.candidates() {
		all := p.echoes[n.Name]
		if finding, remedy := lost(p.vmi.Status.NodeName, n.Name, all); finding != "" {
			out = append(out, verdict{rough, finding, remedy})
			continue
		}
		size = all[0].Size
		well = append(well, fmt.Sprintf("%s (%.1f ms)", n.Name, float64(all[0].Microseconds)/1000))
	}
	if len(well) > 0 {
		out = append(out, verdict{grade: fine, finding: fmt.Sprintf("packets of %d bytes reach %s through the tunnels, and come back", size, strings.Join(well, ", "))})
	}
	return out
}

// tryTunnels has the agent on each node send packets to all others. Of a node that is not Ready other lines tell.
func (c cluster) tryTunnels(ctx context.Context, ask asker, f *facts) {
	r := &reading{cluster: c, ask: ask, facts: *f}
	r.echoes = map[string]map[string][]errand.Echo{}
	var nodes []*corev1.Node
	size := 0
	for i := range f.nodes {
		n := &f.nodes[i]
		if !nodeReady(n) {
			continue
		}
		nodes = append(nodes, n)
		if mtu, err := strconv.Atoi(n.Annotations[v1alpha1.MTUAnnotation]); err == nil && (size == 0 || mtu < size) {
			size = mtu // a pod's is the smallest of all nodes
		}
	}
	agents := f.component(agentComponent)
	var g errgroup.Group // its parts note what they cannot try, and go on
	g.SetLimit(askAtOnce)
	for _, from := range nodes {
		i := slices.IndexFunc(agents, func(p *corev1.Pod) bool { return p.Spec.NodeName == from.Name && notReady(p) == "" })
		if i < 0 {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(nodes), func(n *corev1.Node) bool { return n == from })
		g.Go(func() error {
			all, err := probeOf(others, size).run(ctx, r.ask, agents[i].Name)
			if err != nil {
				r.miss(rough, "what the tunnels of "+from.Name+" carry", err, "does its agent run, and is it of this Godwit's version? --probe=false does without")
				return nil
			}
			for _, n := range others {
				if _, ok := all[n.Name]; !ok {
					all[n.Name] = nil // it has no address
				}
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.echoes[from.Name] = all
			return nil
		})
	}
	_ = g.Wait() // nobody returns an error
	slices.SortFunc(r.unread, func(a, b verdict) int { return strings.Compare(a.finding, b.finding) })
	*f = r.facts
}

// echoing: what each node sends to each other comes back, in packets as long as pods send them.
func (f *facts) echoing() (well string, wrong []verdict) {
	size, count := 0, 0
	for _, from := range slices.Sorted(maps.Keys(f.echoes)) {
		for _, to := range slices.Sorted(maps.Keys(f.echoes[from])) {
			all := f.echoes[from][to]
			finding, remedy := lost(from, to, all)
			switch {
			case finding == "":
				count++
				size = all[0].Size
			case slices.ContainsFunc(all, errand.Echo.Answered):
				wrong = append(wrong, verdict{rough, finding, remedy})
			default:
				wrong = append(wrong, verdict{stuck, finding, remedy})
			}
		}
	}
	if count == 0 {
		return "", wrong
	}
	return fmt.Sprintf("packets of %d bytes came back through the tunnels, %d times there and back", size, count), wrong
}
