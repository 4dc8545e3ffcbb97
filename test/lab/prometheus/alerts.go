package prometheus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// ErrSilent says that an alert does not fire.
var ErrSilent = errors.New("the alert does not fire")

// haste is what Hasten changes: for how long something must be so, and over how long it is counted. The longest window outlasts several migrations of a slow machine.
func haste() map[string]string {
	return map[string]string{
		`for: \d+m\n`:                  "for: 2s\n",
		`(_longest_seconds\)) > 900\n`: "$1 > 3\n",
		`(_silent_seconds\)) > 60\n`:   "$1 > 3\n",
		`\[30m\]`:                      "[90s]",
		`\[(5|10|15)m\]`:               "[20s]",
		`offset 15m\b`:                 "offset 20s",
	}
}

// Hasten writes a file of rules with waits of seconds in place of minutes: all that the rules have is what they are about, but for how long.
func Hasten(rules, into string) error {
	content, err := os.ReadFile(rules)
	if err != nil {
		return fmt.Errorf("read the alerts: %w", err)
	}
	text := string(content)
	for pattern, to := range haste() {
		what := regexp.MustCompile(pattern)
		if !what.MatchString(text) {
			return fmt.Errorf("hasten the alerts of %s: they have nothing like %s", rules, pattern)
		}
		text = what.ReplaceAllString(text, to)
	}
	if err := os.WriteFile(into, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the hastened alerts: %w", err)
	}
	return nil
}

// Firing are the alerts that fire, by name.
func (s *Server) Firing(ctx context.Context) (map[string][]promv1.Alert, error) {
	all, err := s.API.Alerts(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask Prometheus for its alerts: %w", err)
	}
	out := map[string][]promv1.Alert{}
	for _, a := range all.Alerts {
		if name := string(a.Labels[model.AlertNameLabel]); a.State == promv1.AlertStateFiring {
			out[name] = append(out[name], a)
		}
	}
	return out, nil
}

// Fires returns what an alert says that fires with exactly these labels, beside its name; ErrSilent if none does.
func (s *Server) Fires(ctx context.Context, name string, labels model.LabelSet) (summary string, _ error) {
	labels = labels.Merge(model.LabelSet{model.AlertNameLabel: model.LabelValue(name)})
	all, err := s.Firing(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(all[name], func(a promv1.Alert) bool { return a.Labels.Equal(labels) })
	if i < 0 {
		return "", fmt.Errorf("%w: %v; these do: %v", ErrSilent, labels, all)
	}
	says := all[name][i].Annotations
	summary = string(says["summary"])
	if page := string(says["runbook_url"]); summary == "" || strings.ContainsAny(summary, "{}<>") || !strings.HasSuffix(page, "#"+strings.ToLower(name)) {
		return "", fmt.Errorf("%s says %q, and names %s as its page", name, summary, page)
	}
	return summary, nil
}
