package policy

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// names are so many named ports.
func names(n int) []networkingv1.NetworkPolicyPort {
	out := make([]networkingv1.NetworkPolicyPort, n)
	for i := range out {
		name := intstr.FromString(fmt.Sprintf("a%05d", i))
		out[i].Port = &name
	}
	return out
}

// selectors are so many peers, each of which selects all pods.
func selectors(n int) []networkingv1.NetworkPolicyPeer {
	out := make([]networkingv1.NetworkPolicyPeer, n)
	for i := range out {
		out[i].NamespaceSelector = &metav1.LabelSelector{}
		out[i].PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: fmt.Sprintf("x%d", i), Operator: metav1.LabelSelectorOpDoesNotExist}}}
	}
	return out
}

// everywhere is a peer: what is selected in all namespaces.
func everywhere(e ...metav1.LabelSelectorRequirement) []networkingv1.NetworkPolicyPeer {
	return []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: &metav1.LabelSelector{MatchExpressions: e}}}
}

// oneOf is a requirement with so many values.
func oneOf(values int) metav1.LabelSelectorRequirement {
	out := metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpIn}
	for i := range values {
		out.Values = append(out.Values, fmt.Sprintf("v%d", i))
	}
	return out
}

// noneOf are so many requirements, each of which nearly everything meets.
func noneOf(keys int) []metav1.LabelSelectorRequirement {
	out := make([]metav1.LabelSelectorRequirement, keys)
	for i := range out {
		out[i] = metav1.LabelSelectorRequirement{Key: fmt.Sprintf("x%d", i), Operator: metav1.LabelSelectorOpDoesNotExist}
	}
	return out
}

// thousands is an ipBlock of about 8,000 prefixes.
func thousands() []networkingv1.NetworkPolicyPeer {
	block := &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}
	for i := range 340 {
		block.Except = append(block.Except, fmt.Sprintf("%d.%d.77.1/32", 1+i/2, i%2*128))
	}
	return []networkingv1.NetworkPolicyPeer{{IPBlock: block}}
}

func ruleOf(to []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicyEgressRule {
	return networkingv1.NetworkPolicyEgressRule{To: to, Ports: ports}
}

// hostile are what one object has room for.
var hostile = []struct {
	name  string
	rules func() []networkingv1.NetworkPolicyEgressRule
	want  []Reason // sorted
	rest  int      // ACLs of the rules that still hold
}{
	{"names by prefixes", func() []networkingv1.NetworkPolicyEgressRule {
		return []networkingv1.NetworkPolicyEgressRule{ruleOf(thousands(), names(10000))}
	}, []Reason{ReasonTooManyPorts}, 0},
	{"names by peers", func() []networkingv1.NetworkPolicyEgressRule {
		return []networkingv1.NetworkPolicyEgressRule{ruleOf(selectors(2000), names(10000))}
	}, []Reason{ReasonTooManyPeers, ReasonTooManyPorts, ReasonTooManyPorts}, 0},
	{"peers by pods", func() []networkingv1.NetworkPolicyEgressRule {
		return []networkingv1.NetworkPolicyEgressRule{ruleOf(selectors(maxTerms), nil), ruleOf(selectors(1), nil)}
	}, []Reason{ReasonTooManyPeers}, 2},
	{"values of one peer", func() []networkingv1.NetworkPolicyEgressRule {
		return []networkingv1.NetworkPolicyEgressRule{ruleOf(everywhere(oneOf(100000)), nil), ruleOf(everywhere(oneOf(10)), nil)}
	}, []Reason{ReasonTooManyTerms}, 2},
	{"requirements of one peer", func() []networkingv1.NetworkPolicyEgressRule {
		return []networkingv1.NetworkPolicyEgressRule{ruleOf(everywhere(noneOf(40000)...), nil), {}}
	}, []Reason{ReasonTooManyTerms}, 1},
	{"requirements of one namespaceSelector", func() []networkingv1.NetworkPolicyEgressRule {
		peer := networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: noneOf(40000)}}
		return []networkingv1.NetworkPolicyEgressRule{ruleOf([]networkingv1.NetworkPolicyPeer{peer}, nil)}
	}, []Reason{ReasonTooManyTerms}, 0},
	{"values by equal peers of many rules", func() []networkingv1.NetworkPolicyEgressRule {
		return slices.Repeat([]networkingv1.NetworkPolicyEgressRule{ruleOf(everywhere(oneOf(maxTerms/4)), nil)}, 5)
	}, []Reason{ReasonTooManyTerms, ReasonTooManyTerms}, 6},
	{"prefixes by rules", func() []networkingv1.NetworkPolicyEgressRule {
		var out []networkingv1.NetworkPolicyEgressRule
		for range 6 {
			out = append(out, ruleOf(thousands(), nil))
		}
		return out
	}, []Reason{ReasonTooManyBlocks, ReasonTooManyBlocks}, 4},
	{"exceptions", func() []networkingv1.NetworkPolicyEgressRule {
		var peers []networkingv1.NetworkPolicyPeer
		for range 6 {
			block := &networkingv1.IPBlock{CIDR: "::/0"}
			for i := range maxPrefixes {
				block.Except = append(block.Except, fmt.Sprintf("%x:%x::7/128", i*8, i))
			}
			peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: block})
		}
		return []networkingv1.NetworkPolicyEgressRule{ruleOf(peers, nil)}
	}, slices.Repeat([]Reason{ReasonTooManyBlocks}, 6), 0},
	{"names by peers, neither of them too many", func() []networkingv1.NetworkPolicyEgressRule {
		return []networkingv1.NetworkPolicyEgressRule{ruleOf(selectors(100), names(100)), ruleOf(nil, nil)}
	}, []Reason{ReasonTooManyPorts}, 1},
	{"rules", func() []networkingv1.NetworkPolicyEgressRule {
		return make([]networkingv1.NetworkPolicyEgressRule, 100000)
	}, []Reason{ReasonTooManyRules}, maxRules},
	{"a few names in each of many rules", func() []networkingv1.NetworkPolicyEgressRule {
		var out []networkingv1.NetworkPolicyEgressRule
		for range maxNames/50 + 1 {
			out = append(out, ruleOf(selectors(9), names(50)))
		}
		return append(out, networkingv1.NetworkPolicyEgressRule{})
	}, []Reason{ReasonTooManyPorts}, 1},
}

// One policy takes neither the memory nor the time of those of all others: what is beyond bounds permits nothing, the rest of it and the policies of others hold.
func TestPolicyExtent(t *testing.T) {
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			x := crowd(100, 1000)
			others := len(x.Rows().ACLs)
			np := policyOf(t, "metadata: {namespace: ns1, name: hostile}\nspec: {podSelector: {}}")
			np.Spec.Egress = c.rules()
			spent := costOf(t, func() {
				x.SetPolicy(np)
				x.Take()
			})
			var got []Reason
			for _, p := range x.Problems(Key{"ns1", "hostile"}) {
				got = append(got, p.Reason)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("problems %v, want %v", got, c.want)
			}
			if got := len(x.Rows().ACLs) - others; got != c.rest {
				t.Errorf("%d ACLs of the policy, want %d: those of the rules that hold, and of the other policies", got, c.rest)
			}
			spent.within(t, cost{kept: 16 << 20, made: 128 << 20, took: 10 * time.Second})
		})
	}
}

// A policy that is as large as may be costs what the controller has.
func TestPolicyExtentFull(t *testing.T) {
	x := crowd(100, 1000)
	np := policyOf(t, "metadata: {namespace: ns1, name: large}\nspec: {podSelector: {}}")
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{
		ruleOf(append(thousands(), selectors(maxPairs/maxNames)...), names(maxNames)), ruleOf(selectors(maxPeers-maxPairs/maxNames), nil), ruleOf(thousands(), nil), ruleOf(thousands(), nil),
	}
	spent := costOf(t, func() {
		x.SetPolicy(np)
		x.Take()
		x.Rows()
	})
	if problems := x.Problems(Key{"ns1", "large"}); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	spent.within(t, cost{kept: 128 << 20, made: 512 << 20, took: 30 * time.Second})
}

// A selector of pods in all namespaces is kept once, not once for each of them.
func TestPolicyExtentNamespaces(t *testing.T) {
	x := crowd(0, 0)
	np := policyOf(t, "metadata: {namespace: ns1, name: wide}\nspec: {podSelector: {}}")
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{ruleOf(everywhere(oneOf(maxTerms-1)), nil)}
	spent := costOf(t, func() {
		x.SetPolicy(np)
		x.Take()
	})
	if problems := x.Problems(Key{"ns1", "wide"}); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	spent.within(t, cost{kept: 8 << 20, made: 32 << 20, took: 10 * time.Second})
}

// A podSelector beyond bounds is as one that cannot be read: all of the namespace is isolated, nothing is permitted.
func TestPolicyExtentSelected(t *testing.T) {
	for name, e := range map[string][]metav1.LabelSelectorRequirement{"values": {oneOf(maxTerms)}, "requirements": noneOf(maxTerms + 1)} {
		np := policyOf(t, "metadata: {namespace: a, name: p}\nspec: {podSelector: {}, ingress: [{}]}")
		np.Spec.PodSelector.MatchExpressions = e
		p := parse(np)
		if len(p.problems) != 1 || p.problems[0].Reason != ReasonTooManyTerms || p.problems[0].Field != "spec.podSelector" || len(p.rules) != 0 || !p.selects.pods.matches(nil) {
			t.Errorf("%s: problems %v, %d rules, selects %s", name, p.problems, len(p.rules), p.selects.text)
		}
	}
	np := policyOf(t, "metadata: {namespace: a, name: p}\nspec: {podSelector: {matchLabels: {app: v1}}, ingress: [{}]}")
	np.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{oneOf(maxTerms - 2)}
	if p := parse(np); len(p.problems) != 0 || len(p.rules) != 1 {
		t.Errorf("as many as may be: problems %v, %d rules", p.problems, len(p.rules))
	}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: everywhere(noneOf(1)...)}, {}}
	if p := parse(np); len(p.problems) != 1 || p.problems[0].Reason != ReasonTooManyTerms || len(p.rules) != 1 {
		t.Errorf("one more in a rule: problems %v, %d rules", p.problems, len(p.rules))
	}
}

// What is told of a policy is bounded, and what is wrong beyond that permits nothing as well.
func TestPolicyManyProblems(t *testing.T) {
	np := policyOf(t, "metadata: {namespace: a, name: p}\nspec: {podSelector: {}}")
	for range maxRules {
		np.Spec.Egress = append(np.Spec.Egress, ruleOf([]networkingv1.NetworkPolicyPeer{{}}, nil))
	}
	p := parse(np)
	if len(p.problems) != maxProblems || len(p.rules) != 0 {
		t.Errorf("%d problems and %d rules, want %d and none", len(p.problems), len(p.rules), maxProblems)
	}
}

// A pod that has one name at very many numbers counts at the first of them.
func TestPolicyManyNumbers(t *testing.T) {
	p := crowdPod(1, 1)
	for i := range 5000 {
		p.Ports = append(p.Ports, PodPort{Name: "http", Number: int32(i + 1)})
	}
	x := crowd(0, 0)
	x.SetPod(p)
	x.SetPolicy(policyOf(t, "metadata: {namespace: ns1, name: p}\nspec: {podSelector: {}, ingress: [{ports: [{port: http}]}]}"))
	if n := len(x.Rows().ACLs) - len(baseACLs()); n != maxNumbers {
		t.Errorf("%d ACLs, want %d", n, maxNumbers)
	}
}

// cost is what something needs: bytes that stay, bytes altogether, and time.
type cost struct {
	kept, made int64
	took       time.Duration
}

func costOf(t *testing.T, do func()) cost {
	t.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	do()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	made := int64(after.TotalAlloc - before.TotalAlloc)
	runtime.GC()
	runtime.ReadMemStats(&after)
	c := cost{kept: int64(after.HeapAlloc) - int64(before.HeapAlloc), made: made, took: took}
	t.Logf("kept %d KiB of %d KiB, in %v", c.kept>>10, c.made>>10, c.took)
	return c
}

func (c cost) within(t *testing.T, limit cost) {
	t.Helper()
	if c.kept > limit.kept || c.made > limit.made || c.took > limit.took {
		t.Errorf("%+v, want at most %+v", c, limit)
	}
}
