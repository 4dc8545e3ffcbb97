package kubectl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/errand"
)

// release is one of OVN's: 23.03.1 is of March 2023, with one correction.
type release struct{ year, month, patch int }

var releaseText = regexp.MustCompile(`^(\d+)\.(\d+)(?:\.(\d+))?`)

// parseRelease reads what OVN says: 23.03.1, and with a distribution's or a schema's numbers behind it.
func parseRelease(text string) (release, error) {
	found := releaseText.FindStringSubmatch(strings.Trim(text, "\"\n "))
	if found == nil {
		return release{}, fmt.Errorf("%q is no release of OVN: want one such as 23.03.1", text)
	}
	var n [3]int
	for i, digits := range found[1:] {
		n[i], _ = strconv.Atoi(digits) // nothing is 0
	}
	return release{n[0], n[1], n[2]}, nil
}

func (r release) String() string { return fmt.Sprintf("%d.%02d.%d", r.year, r.month, r.patch) }

func (r release) compare(o release) int {
	return cmp.Or(cmp.Compare(r.year, o.year), cmp.Compare(r.month, o.month), cmp.Compare(r.patch, o.patch))
}

// series is the release without its corrections: between two of a series there is no difference in what daemons say to each other.
func (r release) series() release { return release{year: r.year, month: r.month} }

// older: it comes before that release.
func (r release) older(year, month, patch int) bool {
	return r.compare(release{year, month, patch}) < 0
}

// lack is what an ovn-controller lacks for a migration to its node, and since is the release that has it; both are empty of one that lacks nothing. By OVN's sources: ours ran with 23.03.1 alone.
func (r release) lack() (g grade, what, since string) {
	switch {
	case r.older(22, 6, 0): // Port_Binding.additional_chassis
		return stuck, "knows no port that is on two nodes", "23.03.1"
	case r.older(22, 9, 2), r == release{22, 12, 0}, r == release{23, 3, 0}: // binding.c: nothing is claimed in if-status.c for an additional chassis
		return stuck, "never calls a port installed on the second of its nodes, for which the target's pod waits", "23.03.1"
	case r == release{23, 6, 0}: // if-status.c: a claim that waits is written as the main chassis'
		return rough, "may claim a port for itself alone where it is the second of its nodes", "23.06.1"
	case r.older(23, 3, 1):
		return rough, "is older than what Godwit is made for", "23.03.1"
	}
	return fine, "", ""
}

// ovnReleases are those that a migration is about.
type ovnReleases struct {
	// controllers are what the nodes' agents say of their ovn-controllers, and of themselves; unasked is why one could not say it.
	controllers map[string]errand.Fitness
	unasked     map[string]error
	// northd is what the ovn-northd that works wrote of itself, empty where nobody can be asked, for it runs in no pod of Godwit's; unread is why it could not be read.
	northd string
	unread error
}

// askReleases has the agents of the VM's node, and of those that can take it, ask their ovn-controllers; and reads the ovn-northd's.
func (c cluster) askReleases(ctx context.Context, p *preflight) {
	found := &ovnReleases{controllers: map[string]errand.Fitness{}, unasked: map[string]error{}}
	var mu sync.Mutex
	var g errgroup.Group // its parts note what they cannot ask, and go on
	g.SetLimit(askAtOnce)
	for _, node := range p.concerned() {
		g.Go(func() error {
			said, err := c.askController(ctx, node)
			mu.Lock()
			defer mu.Unlock()
			if found.controllers[node] = said; err != nil {
				found.unasked[node] = err
			}
			return nil
		})
	}
	g.Go(func() error {
		found.northd, found.unread = c.northd(ctx)
		return nil
	})
	_ = g.Wait() // nobody returns an error
	p.ovn = found
}

func (c cluster) askController(ctx context.Context, node string) (said errand.Fitness, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	in, err := c.agentOn(ctx, node)
	if err != nil {
		return said, err
	}
	text, err := c.ask(ctx, in.pod.Name, agentComponent, append([]string{"godwit-agent", "fitness"}, in.as("--metrics-address", "--ovn-run-dir")...)...)
	if err != nil {
		return said, err
	}
	if err := json.Unmarshal([]byte(text), &said); err != nil {
		return said, fmt.Errorf("read what agent %s says: %w: is it of this Godwit's version? kubectl ovn --version", in.pod.Name, err)
	}
	return said, nil
}

// northd is what the ovn-northd that works has written into its database, where that runs as Godwit's pods.
func (c cluster) northd(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var central corev1.PodList
	if err := c.api.List(ctx, &central, client.InNamespace(c.system), client.MatchingLabels{labelName: "godwit", labelComponent: centralComponent}); err != nil || len(central.Items) == 0 {
		return "", err
	}
	in, err := c.member(ctx, northbound)
	if err != nil {
		return "", err
	}
	return output(ctx, c.containers, in, northbound.client, "--timeout=15", "--no-leader-only", "get", "NB_Global", ".", "options:northd_internal_version")
}

// concerned are the VM's node, the first, and those that can take it.
func (p preflight) concerned() []string {
	var out []string
	if p.vmi.Status.NodeName != "" {
		out = append(out, p.vmi.Status.NodeName)
	}
	for _, n := range p.candidates() {
		out = append(out, n.Name)
	}
	return out
}

// releases: OVN has on every node what a migration needs, and is of one series everywhere.
func (p preflight) releases() []verdict {
	if p.ovn == nil {
		return nil
	}
	var out []verdict
	var silent, why []string
	at := map[release][]string{}
	for _, node := range p.concerned() {
		r, err := p.ovn.controller(node)
		if err != nil {
			silent, why = append(silent, node), append(why, err.Error())
			continue
		}
		at[r] = append(at[r], node)
	}
	for _, on := range at {
		slices.Sort(on)
	}
	if len(silent) > 0 { // they mostly have one reason
		because := why[0]
		if len(silent) > 1 {
			because = "on " + silent[0] + ": " + because
		}
		out = append(out, verdict{rough, fmt.Sprintf("ovn-controller on %s could not be asked for its release: %s", strings.Join(silent, ", "), because), "kubectl ovn diagnose looks at all of OVN; --probe=false does without"})
	}
	all := slices.SortedFunc(maps.Keys(at), release.compare)
	out = append(out, p.lacking(all, at)...)
	northd, wrong := p.ovn.central(all, at)
	out = append(out, wrong...)
	if len(all) > 1 && all[0].series() != all[len(all)-1].series() {
		out = append(out, verdict{rough, "ovn-controller is not of one series: " + onNodes(all, at), "is an update under way? let the VM move when it is over"})
	}
	if len(out) == 0 && len(all) > 0 {
		out = append(out, verdict{grade: fine, finding: "OVN has what a migration needs: ovn-controller " + onNodes(all, at) + northd})
	}
	return out
}

// unheard: agents that did not say whether they hand connections over. They are taken not to.
func (p preflight) unheard() []verdict {
	if p.ovn == nil {
		return nil
	}
	var out []verdict
	for _, node := range p.concerned() {
		if why := p.ovn.controllers[node].HandoffError; why != "" {
			out = append(out, verdict{rough, fmt.Sprintf("whether the agent on %s hands connections over could not be found out: %s", node, why),
				"is it ready? kubectl ovn diagnose; --metrics-address must be in the args of its container as it is, not as $(NAME)"})
		}
	}
	return out
}

// lacking: what a release lacks keeps the VM where it is if no node is left that can take it.
func (p preflight) lacking(all []release, at map[release][]string) []verdict {
	unable := map[string]bool{}
	for _, r := range all {
		if g, _, _ := r.lack(); g == stuck {
			for _, node := range at[r] {
				unable[node] = true
			}
		}
	}
	nobody := !slices.ContainsFunc(p.candidates(), func(n *corev1.Node) bool { return !unable[n.Name] })
	var out []verdict
	for _, r := range all {
		g, what, since := r.lack()
		switch {
		case g == fine:
			continue
		case g == stuck && !nobody:
			g = rough
		}
		out = append(out, verdict{g, fmt.Sprintf("ovn-controller %s on %s %s", r, strings.Join(at[r], ", "), what), "update OVN there, to " + since + " or newer"})
	}
	return out
}

// controller is the release of a node's ovn-controller.
func (o *ovnReleases) controller(node string) (release, error) {
	said := o.controllers[node]
	switch err := o.unasked[node]; {
	case err != nil:
		return release{}, err
	case said.Error != "":
		return release{}, errors.New(said.Error)
	}
	return parseRelease(said.Controller)
}

// handOver: the agents of the VM's node, and of all that can take it, hand connections over.
func (p preflight) handOver() bool {
	return p.ovn != nil && !slices.ContainsFunc(p.concerned(), func(node string) bool { return !p.ovn.controllers[node].Handoff })
}

// central judges the ovn-northd that works, beside ovn-controllers from the oldest to the newest. also is what the line says of it if all is well.
func (o *ovnReleases) central(controllers []release, at map[release][]string) (also string, wrong []verdict) {
	if o.unread == nil && o.northd == "" {
		return "; ovn-northd is not Godwit's, and was not asked", nil
	}
	northd, err := parseRelease(o.northd)
	if o.unread != nil {
		err = o.unread
	}
	switch {
	case err != nil:
		return "", []verdict{{rough, fmt.Sprintf("the release of ovn-northd could not be read: %v", err), "kubectl ovn diagnose looks at all of OVN; --probe=false does without"}}
	case northd.older(22, 6, 0):
		return "", []verdict{{stuck, fmt.Sprintf("ovn-northd %s knows no port that asks for two nodes", northd), "update OVN, to 23.03.1 or newer"}}
	}
	behind := slices.DeleteFunc(slices.Clone(controllers), func(r release) bool { return r.series().compare(northd.series()) >= 0 })
	if len(behind) > 0 {
		wrong = append(wrong, verdict{rough, fmt.Sprintf("ovn-northd %s is newer than ovn-controller %s, which may not know what it writes", northd, onNodes(behind, at)), "update ovn-controller there: OVN wants the nodes updated first"})
	}
	return "; ovn-northd " + northd.String(), wrong
}

// onNodes are releases with where they are.
func onNodes(all []release, at map[release][]string) string {
	var out []string
	for _, r := range all {
		out = append(out, r.String()+" on "+strings.Join(at[r], ", "))
	}
	return strings.Join(out, "; ")
}
