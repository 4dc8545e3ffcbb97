package kubectl

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/policy"
)

const (
	// flagHandoverRules and flagHandoverGrace are the controller's (cmd/godwit-controller).
	flagHandoverRules = "--handover-rules"
	flagHandoverGrace = "--handover-grace"
	// policiesNamed is how many NetworkPolicies a line names.
	policiesNamed = 5
)

// isolation is what is known of NetworkPolicies before a VM moves.
type isolation struct {
	// policies are those of the VM's namespace; unread is why they could not be read.
	policies []networkingv1.NetworkPolicy
	unread   error
	// handover is whether connections of isolated VMs go on (docs/policy.md), as the controller was told; unknown is why nobody can say.
	handover handover
	unknown  error
}

// handover is what the controller does with connections of VMs that move and are isolated.
type handover struct {
	off   bool
	grace time.Duration
}

// readIsolation reads them. What cannot be read has a line of its own: all else can be told without.
func (c cluster) readIsolation(ctx context.Context) (i isolation) {
	var list networkingv1.NetworkPolicyList
	i.unread = c.api.List(ctx, &list, client.InNamespace(c.namespace))
	i.policies = list.Items
	i.handover, i.unknown = c.handover(ctx)
	return i
}

// handover is what the controller's pods are told by their arguments: the worst of them, as long as they differ.
func (c cluster) handover(ctx context.Context) (h handover, err error) {
	var pods corev1.PodList
	if err := c.api.List(ctx, &pods, client.InNamespace(c.system), client.MatchingLabels{labelName: "godwit", labelComponent: managerComponent}); err != nil {
		return h, fmt.Errorf("list the controller's pods: %w", err)
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if ended(p) || len(p.Spec.Containers) == 0 {
			continue
		}
		told, err := toldHandover(p.Spec.Containers[0].Args)
		if err != nil {
			return h, fmt.Errorf("pod %s: %w", p.Name, err)
		}
		if h.off = h.off || told.off; h.grace == 0 || told.grace < h.grace {
			h.grace = told.grace
		}
	}
	if h.grace == 0 {
		return h, errors.New("there is no pod of godwit-controller")
	}
	return h, nil
}

// toldHandover reads the controller's arguments.
func toldHandover(args []string) (handover, error) {
	h := handover{grace: policy.HandoverGrace}
	for i, arg := range args {
		flag, value, given := strings.Cut(arg, "=")
		var err error
		switch flag {
		case flagHandoverRules:
			on := true
			if given {
				on, err = strconv.ParseBool(value)
			}
			h.off = !on
		case flagHandoverGrace:
			if !given && i+1 < len(args) {
				value = args[i+1]
			}
			h.grace, err = time.ParseDuration(value)
		}
		if err != nil {
			return h, fmt.Errorf("its argument %s: %w", arg, err)
		}
	}
	return h, nil
}

// isolated: which connections NetworkPolicies would end where the VM arrives.
func (p preflight) isolated() verdict {
	if p.isolation.unread != nil {
		return verdict{rough, fmt.Sprintf("which NetworkPolicies isolate it could not be read: %v", p.isolation.unread), "kubectl auth can-i list networkpolicies -n " + p.vmi.Namespace}
	}
	var names []string
	var d directions
	for i := range p.isolation.policies {
		np := &p.isolation.policies[i]
		if in, out := policy.Isolates(np, p.vmi.Labels); in || out {
			names = append(names, np.Name)
			d.in, d.out = d.in || in, d.out || out
		}
	}
	if len(names) == 0 {
		return verdict{grade: fine, finding: "no NetworkPolicy isolates it"}
	}
	isolated := isolatedBy(names) + " in " + d.String()
	switch {
	case p.handOver():
		return verdict{grade: fine, finding: isolated + ": its connections move with it"}
	case p.isolation.unknown != nil:
		return verdict{rough, fmt.Sprintf("%s; whether its connections go on could not be found out: %v", isolated, p.isolation.unknown), "does godwit-controller run? --system-namespace says where Godwit is"}
	case p.isolation.handover.off:
		return verdict{rough, fmt.Sprintf("%s, and the controller has %s=false: where it arrives, %s", isolated, flagHandoverRules, d.stalling()),
			"take " + flagHandoverRules + "=false from godwit-controller (docs/policy.md), or open them again after the move"}
	}
	return verdict{grade: fine, finding: fmt.Sprintf("%s: TCP connections go on, if anything is sent on them within %s of the move; UDP and SCTP are judged anew", isolated, duration.HumanDuration(p.isolation.handover.grace))}
}

// isolatedBy is who isolates it; of many the first.
func isolatedBy(names []string) string {
	switch n := len(names); {
	case n == 1:
		return "NetworkPolicy " + names[0] + " isolates it"
	case n > policiesNamed:
		return fmt.Sprintf("NetworkPolicies %s and %d more isolate it", strings.Join(names[:policiesNamed], ", "), n-policiesNamed)
	}
	return "NetworkPolicies " + strings.Join(names, ", ") + " isolate it"
}

// directions are those in which something is isolated.
type directions struct{ in, out bool }

// String implements fmt.Stringer.
func (d directions) String() string {
	switch {
	case d.in && d.out:
		return "ingress and egress"
	case d.in:
		return "ingress"
	}
	return "egress"
}

// stalling are the connections of which the next packet may be one that no policy permits to begin a connection.
func (d directions) stalling() string {
	switch {
	case d.in && d.out:
		return "connections stall if the end that did not open them is the first to send"
	case d.in:
		return "connections that it has opened stall if the other end is the first to send"
	}
	return "connections that others have opened stall if it is the first to send"
}
