// Package nad reads what is said of a pod's second networks: the annotation by which a pod selects NetworkAttachmentDefinitions, and what those configure. Both follow the
// "Kubernetes Network Custom Resource Definition De-facto Standard" of the Network Plumbing Working Group, as Multus reads it. Everything in here is a pure function.
package nad

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// Annotation lists a pod's second networks.
const Annotation = "k8s.v1.cni.cncf.io/networks"

// MaxSelections is how many second networks a pod may have: whoever may make a pod takes an address for each.
const MaxSelections = 32

// Selection is one second network of a pod.
type Selection struct {
	// Namespace and Name are the NetworkAttachmentDefinition's.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Interface is the name of the pod's link: what is asked for, else "net" and the place in the list, from 1.
	Interface string `json:"interface"`
	// Asked is an older key of Interface.
	Asked string `json:"interfaceRequest"`
	// IPs, with or without a prefix length, and MAC are what is asked for besides.
	IPs []string `json:"ips"`
	MAC string   `json:"mac"`
	// Claim is the name of the IPAMClaim in the pod's namespace whose addresses the interface has, empty if it has its own.
	Claim string `json:"ipam-claim-reference"`
}

// Network is "NAMESPACE/NAME" of the NetworkAttachmentDefinition.
func (s Selection) Network() string { return s.Namespace + "/" + s.Name }

// ParseSelections reads the annotation of a pod in a namespace: "NAME, NAMESPACE/NAME@INTERFACE" or a list in JSON. It returns nil for an empty one. The error says what is
// wrong; then there are no selections at all, as with Multus.
func ParseSelections(text, namespace string) ([]Selection, error) {
	var out []Selection
	switch {
	case strings.TrimSpace(text) == "":
		return nil, nil
	case strings.ContainsAny(text, `[{"`):
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			return nil, fmt.Errorf("annotation %s: %w: want a list in JSON, or names with commas between", Annotation, err)
		}
	default:
		for item := range strings.SplitSeq(text, ",") {
			out = append(out, plain(strings.TrimSpace(item)))
		}
	}
	if len(out) > MaxSelections {
		return nil, fmt.Errorf("annotation %s: %d networks, want at most %d", Annotation, len(out), MaxSelections)
	}
	for i := range out {
		if err := complete(&out[i], i, namespace); err != nil {
			return nil, fmt.Errorf("annotation %s: network %d: %w", Annotation, i+1, err)
		}
		if slices.ContainsFunc(out[:i], func(o Selection) bool { return o.Interface == out[i].Interface }) {
			return nil, fmt.Errorf("annotation %s: two interfaces are named %s", Annotation, out[i].Interface)
		}
	}
	return out, nil
}

// plain reads "NAMESPACE/NAME@INTERFACE", of which only the name must be there.
func plain(item string) Selection {
	namespace, rest, ok := strings.Cut(item, "/")
	if !ok {
		namespace, rest = "", item
	}
	name, link, _ := strings.Cut(rest, "@")
	return Selection{Namespace: strings.TrimSpace(namespace), Name: strings.TrimSpace(name), Interface: strings.TrimSpace(link)}
}

// complete adds what is left out, and checks what names are made of.
func complete(s *Selection, place int, namespace string) error {
	if s.Namespace == "" {
		s.Namespace = namespace
	}
	if s.Interface == "" {
		s.Interface = s.Asked
	}
	if s.Interface == "" {
		s.Interface = fmt.Sprintf("net%d", place+1)
	}
	switch {
	case s.Name == "" || strings.Contains(s.Name, "/") || strings.Contains(s.Namespace, "/"):
		return fmt.Errorf("%q is no name of a NetworkAttachmentDefinition: want NAME or NAMESPACE/NAME", s.Network())
	case !ident.ValidInterface(s.Interface), s.Interface == ident.FirstInterface, s.Interface == ident.DefaultNetwork, s.Interface == "lo":
		return fmt.Errorf("%s cannot have an interface named %q: want 1 to 15 characters, and not %s, lo or %s", s.Network(), s.Interface, ident.FirstInterface, ident.DefaultNetwork)
	}
	for i, ip := range s.IPs {
		if p, err := netip.ParsePrefix(ip); err == nil {
			s.IPs[i] = p.Addr().String() // the Subnet has the length
		}
	}
	return nil
}

// Config is what a NetworkAttachmentDefinition configures. The zero value is another plugin's business.
type Config struct {
	// Ours: a pod's interface on it is Godwit's.
	Ours bool
	// Subnet is the name of the Subnet, empty for that of the pod's namespace.
	Subnet string
}

// ParseConfig reads spec.config of a NetworkAttachmentDefinition: a plugin's configuration, or a list of them of which the first makes the interface.
func ParseConfig(text string) (Config, error) {
	type plugin struct {
		Type   string `json:"type"`
		Subnet string `json:"subnet"`
	}
	var conf struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if strings.TrimSpace(text) == "" {
		return Config{}, nil // a file on the node has it
	}
	if err := json.Unmarshal([]byte(text), &conf); err != nil {
		var kind struct {
			Type string `json:"type"`
		}
		if json.Unmarshal([]byte(text), &kind) == nil && kind.Type != "" && kind.Type != ident.PluginName {
			return Config{}, nil // whatever "subnet" is to that plugin
		}
		return Config{}, fmt.Errorf("its config cannot be read: %w", err)
	}
	first := conf.plugin
	if len(conf.Plugins) > 0 {
		first = conf.Plugins[0]
	}
	if first.Type != ident.PluginName {
		return Config{}, nil
	}
	return Config{Ours: true, Subnet: first.Subnet}, nil
}
