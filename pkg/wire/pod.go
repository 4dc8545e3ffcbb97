package wire

import (
	"errors"
	"fmt"
	"strings"
)

// Pod says whose sandbox a container is.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// UID is empty if the runtime does not pass it on.
	UID string `json:"uid,omitempty"`
}

// String is "namespace/name".
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Names in Kubernetes: a label of RFC 1123 has at most 63 characters, a subdomain 253.
const (
	maxLabel     = 63
	maxSubdomain = 253
)

// ParseArgs reads CNI_ARGS, "KEY=VALUE;KEY=VALUE", as Kubernetes runtimes write it. Keys that it does not know are other plugins'. The pod is
// valid if the error is nil.
func ParseArgs(args string) (Pod, error) {
	var p Pod
	fields := map[string]*string{"K8S_POD_NAMESPACE": &p.Namespace, "K8S_POD_NAME": &p.Name, "K8S_POD_UID": &p.UID}
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return Pod{}, fmt.Errorf("CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		field := fields[key]
		if field == nil {
			continue
		}
		if *field != "" && *field != value { // Multus says the same twice
			return Pod{}, fmt.Errorf("CNI_ARGS: %s is there twice, as %q and %q", key, *field, value)
		}
		*field = value
	}
	if err := p.Validate(); err != nil {
		return Pod{}, fmt.Errorf("CNI_ARGS: %w", err)
	}
	return p, nil
}

// Validate reports everything that is wrong. A pod that it accepts has names without slashes, so that OVN port names made of them are
// unambiguous.
func (p Pod) Validate() error {
	var errs []error
	if !isSubdomain(p.Namespace, maxLabel) || strings.Contains(p.Namespace, ".") {
		errs = append(errs, fmt.Errorf("K8S_POD_NAMESPACE %q is not a namespace's name", p.Namespace))
	}
	if !isSubdomain(p.Name, maxSubdomain) {
		errs = append(errs, fmt.Errorf("K8S_POD_NAME %q is not a pod's name", p.Name))
	}
	if len(p.UID) > maxLabel || strings.Trim(p.UID, "0123456789abcdefABCDEF-") != "" {
		errs = append(errs, fmt.Errorf("K8S_POD_UID %q is not a UID", p.UID))
	}
	return errors.Join(errs...)
}

// isSubdomain is RFC 1123's rule as Kubernetes applies it: labels of lower-case letters, digits and inner hyphens, joined by dots.
func isSubdomain(s string, maxLen int) bool {
	if len(s) > maxLen {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}
