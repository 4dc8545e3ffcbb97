package policy

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// selector is a label selector with a text that is the same for selectors that say the same in another order. The zero value selects everything.
type selector struct {
	text string
	reqs labels.Requirements
}

// pair is a label.
type pair struct{ key, value string }

func parseSelector(s *metav1.LabelSelector) (selector, error) {
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return selector{}, err
	}
	reqs, _ := parsed.Requirements()
	texts := make([]string, len(reqs))
	for i := range reqs {
		texts[i] = requirementText(&reqs[i])
	}
	slices.Sort(texts)
	return selector{text: strings.Join(slices.Compact(texts), ","), reqs: reqs}, nil
}

// requirementText is unambiguous, unlike the requirement's own String: "in (a)" is "=a", and values have an order.
func requirementText(r *labels.Requirement) string {
	values := r.ValuesUnsorted()
	slices.Sort(values)
	values = slices.Compact(values)
	switch op := r.Operator(); {
	case op == selection.Exists:
		return r.Key()
	case op == selection.DoesNotExist:
		return "!" + r.Key()
	case op == selection.NotIn:
		return r.Key() + " notin (" + strings.Join(values, ",") + ")"
	case len(values) == 1:
		return r.Key() + "=" + values[0]
	default:
		return r.Key() + " in (" + strings.Join(values, ",") + ")"
	}
}

// String is the text, or an asterisk for the selector of everything: no label has that in its key.
func (s selector) String() string {
	if s.text == "" {
		return "*"
	}
	return s.text
}

func (s selector) matches(set map[string]string) bool {
	for i := range s.reqs {
		if !s.reqs[i].Matches(labels.Set(set)) {
			return false
		}
	}
	return true
}

// needs are labels of which whatever is selected has exactly one; none if there is no such list.
func (s selector) needs() []pair {
	for i := range s.reqs {
		r := &s.reqs[i]
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals:
			var out []pair
			for _, v := range r.ValuesUnsorted() {
				out = append(out, pair{r.Key(), v})
			}
			slices.SortFunc(out, func(a, b pair) int { return strings.Compare(a.value, b.value) })
			return slices.Compact(out)
		}
	}
	return nil
}

// finder finds the classes whose selectors a set of labels may match, without looking at all of them.
type finder struct {
	byLabel map[pair]map[*class]struct{}
	others  map[*class]struct{}
}

func newFinder() finder {
	return finder{byLabel: map[pair]map[*class]struct{}{}, others: map[*class]struct{}{}}
}

func (f finder) empty() bool { return len(f.byLabel) == 0 && len(f.others) == 0 }

func (f finder) insert(c *class) {
	needs := c.spec.pods.needs()
	for _, n := range needs {
		if f.byLabel[n] == nil {
			f.byLabel[n] = map[*class]struct{}{}
		}
		f.byLabel[n][c] = struct{}{}
	}
	if len(needs) == 0 {
		f.others[c] = struct{}{}
	}
}

func (f finder) remove(c *class) {
	for _, n := range c.spec.pods.needs() {
		delete(f.byLabel[n], c)
		if len(f.byLabel[n]) == 0 {
			delete(f.byLabel, n)
		}
	}
	delete(f.others, c)
}

// candidates calls yield once for each class that may match.
func (f finder) candidates(set map[string]string, yield func(*class)) {
	for k, v := range set {
		for c := range f.byLabel[pair{k, v}] {
			yield(c)
		}
	}
	for c := range f.others {
		yield(c)
	}
}
