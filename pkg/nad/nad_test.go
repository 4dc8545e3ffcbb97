package nad

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSelections(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat("a,", MaxSelections+1), ",")
	for name, c := range map[string]struct {
		text string
		want []Selection
		says string
	}{
		"none":       {"", nil, ""},
		"blank":      {"  ", nil, ""},
		"name":       {"blue", []Selection{{Namespace: "shop", Name: "blue", Interface: "net1"}}, ""},
		"names":      {"blue, ops/red@r0", []Selection{{Namespace: "shop", Name: "blue", Interface: "net1"}, {Namespace: "ops", Name: "red", Interface: "r0"}}, ""},
		"place":      {"ops/red@r0,blue", []Selection{{Namespace: "ops", Name: "red", Interface: "r0"}, {Namespace: "shop", Name: "blue", Interface: "net2"}}, ""},
		"list":       {`[{"name":"blue","namespace":"ops","interface":"b0","ips":["10.1.0.5/24","fd00::5"],"mac":"02:00:00:00:00:05"},{"name":"red"}]`, []Selection{{Namespace: "ops", Name: "blue", Interface: "b0", IPs: []string{"10.1.0.5", "fd00::5"}, MAC: "02:00:00:00:00:05"}, {Namespace: "shop", Name: "red", Interface: "net2"}}, ""},
		"empty list": {"[]", []Selection{}, ""},
		"old key":    {`[{"name":"blue","interfaceRequest":"b0"}]`, []Selection{{Namespace: "shop", Name: "blue", Interface: "b0", Asked: "b0"}}, ""},
		"twice":      {"blue@b0,red@b0", nil, "two interfaces are named b0"},
		"by place":   {"blue@net2,red", nil, "two interfaces are named net2"},
		"no json":    {`[{"name":`, nil, "want a list in JSON"},
		"no name":    {"ops/@b0", nil, "is no name of a NetworkAttachmentDefinition"},
		"slashes":    {"a/b/c", nil, "is no name"},
		"json slash": {`[{"name":"b/c"}]`, nil, "is no name"},
		"eth0":       {"blue@eth0", nil, `interface named "eth0"`},
		"default":    {"blue@default", nil, `interface named "default"`},
		"lo":         {"blue@lo", nil, `interface named "lo"`},
		"long":       {"blue@sixteen-letters-", nil, "1 to 15 characters"},
		"row name":   {`[{"name":"blue","interface":"a/b"}]`, nil, "1 to 15 characters"},
		"many":       {many, nil, fmt.Sprintf("at most %d", MaxSelections)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSelections(c.text, "shop")
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Fatalf("error %v, want it to say %q", err, c.says)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseConfig(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want Config
		bad  bool
	}{
		"ours":             {`{"cniVersion":"1.0.0","name":"blue","type":"godwit"}`, Config{Ours: true}, false},
		"with a Subnet":    {`{"type":"godwit","subnet":"blue"}`, Config{Ours: true, Subnet: "blue"}, false},
		"first of a list":  {`{"name":"b","plugins":[{"type":"godwit","subnet":"blue"},{"type":"tuning"}]}`, Config{Ours: true, Subnet: "blue"}, false},
		"later in a list":  {`{"name":"b","plugins":[{"type":"bridge"},{"type":"godwit"}]}`, Config{}, false},
		"another":          {`{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/8"}}`, Config{}, false},
		"another's Subnet": {`{"type":"other","subnet":["10.0.0.0/8"]}`, Config{}, false},
		"in a file":        {"", Config{}, false},
		"no JSON":          {`{"type":`, Config{}, true},
		"no name":          {`{"type":"godwit","subnet":7}`, Config{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseConfig(c.text)
			if got != c.want || (err != nil) != c.bad {
				t.Errorf("%+v (%v), want %+v, an error: %v", got, err, c.want, c.bad)
			}
		})
	}
}
