package policy

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Selectors have one text if and only if they say the same: rows are shared by it.
func TestPolicySelectorText(t *testing.T) {
	expr := func(key string, op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: op, Values: values}}}
	}
	label := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	and := func(a, b *metav1.LabelSelector) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: append(append([]metav1.LabelSelectorRequirement(nil), a.MatchExpressions...), b.MatchExpressions...)}
	}
	seen := map[string]int{}
	for i, same := range [][]*metav1.LabelSelector{
		{{}},
		{expr("all", "Exists")}, {expr("a", "Exists")}, {expr("a", "DoesNotExist")}, {label("a", ""), expr("a", "In", "")},
		{label("a", "b"), expr("a", "In", "b"), expr("a", "In", "b", "b")}, {expr("a", "NotIn", "b")}, {expr("a", "In", "b", "c"), expr("a", "In", "c", "b")},
		{expr("a", "NotIn", "b", "c"), expr("a", "NotIn", "c", "b")}, {expr("a", "NotIn", "")}, {label("all", "a")},
		{and(expr("a", "In", "b"), expr("c", "Exists")), and(expr("c", "Exists"), expr("a", "In", "b"))},
		{and(expr("a", "NotIn", "b"), expr("a", "Exists")), and(expr("a", "Exists"), expr("a", "NotIn", "b"))},
	} {
		for j, s := range same {
			parsed, err := parseSelector(s)
			if err != nil {
				t.Fatal(err)
			}
			if of, known := seen[parsed.String()]; known != (j > 0) || known && of != i {
				t.Errorf("%v: text %q is that of selector %d", s, parsed, of)
			}
			seen[parsed.String()] = i
		}
	}
}
