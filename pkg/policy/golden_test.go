package policy

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/godwit-cni/godwit/pkg/ident"
)

var update = flag.Bool("update", false, "write what testdata/*.txt compile to into them; review the difference")

func TestMain(m *testing.M) {
	flag.Parse()
	if *update {
		if err := flag.Set("rewrite", "true"); err != nil { // datadriven's own name for it
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestPolicyGolden compiles testdata/*.txt. "cluster" says what is there, in lines such as
//
//	namespace NAME LABEL=VALUE…
//	pod NAMESPACE/NAME LABEL=VALUE… ip=ADDRESS… port=NAME/PROTOCOL/NUMBER… [hostnetwork]
//	node NAME ip=ADDRESS… own=ADDRESS… clients=ADDRESS…
//
// "policy" compiles one policy, or several between "---", and shows what is wrong with them and their rows; "base" those that are always there.
func TestPolicyGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("nothing in testdata: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			var s Snapshot
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				switch d.Cmd {
				case "cluster":
					s = parseCluster(t, d.Input)
					return "ok"
				case "base":
					return render(Compile(Config{Join: join}, s))
				case "policy":
					return golden(t, s, d.Input)
				}
				d.Fatalf(t, "unknown command %q", d.Cmd)
				return ""
			})
		})
	}
}

func golden(t *testing.T, s Snapshot, text string) string {
	s.Policies = nil
	var out strings.Builder
	for _, doc := range strings.Split(text, "---\n") {
		np := policyOf(t, doc)
		s.Policies = append(s.Policies, np)
		for _, p := range parse(np).problems {
			fmt.Fprintf(&out, "problem: %v\n", p)
		}
	}
	rows := Compile(Config{Join: join}, s)
	if _, err := newEvaluator(rows); err != nil {
		t.Errorf("OVN would not take it: %v", err)
	}
	var own []ACL
	for _, a := range rows.ACLs {
		if a.Row.ExternalIDs[ident.OwnerKey] == ident.OwnerPolicy {
			own = append(own, a)
		}
	}
	rows.ACLs = own
	rows.Groups = slices.DeleteFunc(rows.Groups, func(g Group) bool { // nobody moves: base.txt has them
		return len(g.Ports) == 0 && (g.Row.Name == handoverGroup(IngressGroup) || g.Row.Name == handoverGroup(EgressGroup))
	})
	return out.String() + render(rows)
}

func policyOf(t *testing.T, text string) *networkingv1.NetworkPolicy {
	t.Helper()
	np := &networkingv1.NetworkPolicy{}
	if err := yaml.UnmarshalStrict([]byte(text), np); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return np
}

func parseCluster(t *testing.T, text string) Snapshot {
	s := Snapshot{Namespaces: map[string]map[string]string{}}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		labels, lists := map[string]string{}, map[string][]netip.Addr{}
		pod := Pod{Labels: labels}
		for _, word := range words[2:] {
			key, value, _ := strings.Cut(word, "=")
			switch key {
			case "ip", "own", "clients":
				lists[key] = append(lists[key], netip.MustParseAddr(value))
			case "port":
				parts := strings.Split(value, "/")
				number, err := strconv.ParseInt(parts[2], 10, 32)
				if err != nil {
					t.Fatal(err)
				}
				pod.Ports = append(pod.Ports, PodPort{Name: parts[0], Protocol: corev1.Protocol(parts[1]), Number: int32(number)})
			case "hostnetwork":
				pod.HostNetwork = true
			default:
				labels[key] = value
			}
		}
		switch words[0] {
		case "namespace":
			s.Namespaces[words[1]] = labels
		case "pod":
			namespace, name, _ := strings.Cut(words[1], "/")
			pod.Namespace, pod.Port, pod.IPs = namespace, ident.PodPort(namespace, name, ident.DefaultNetwork), lists["ip"]
			s.Pods = append(s.Pods, pod)
		case "node":
			s.Hosts = append(s.Hosts, Host{Node: words[1], IPs: lists["ip"], Own: lists["own"], Clients: lists["clients"]})
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	return s
}
