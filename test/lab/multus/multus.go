// Package multus is how Multus, the CNI plugin that gives pods more interfaces than one, is set up on a node whose own plugin is Godwit.
package multus

import (
	_ "embed"
	"encoding/json"
	"fmt"
)

//go:embed manifest.yaml
var manifest string

// Manifest is what the API server must have, as YAML.
func Manifest() string { return manifest }

// The user of Multus.
const (
	Namespace = "kube-system"
	Account   = "multus"
)

// Paths on a node.
const (
	Program    = "/opt/cni/bin/multus"
	Kubeconfig = "/etc/cni/net.d/multus.d/multus.kubeconfig"
	// Conf sorts before all others: container runtimes take the first.
	Conf = "/etc/cni/net.d/00-multus.conf"
)

// version is what Multus speaks, as the list of the first interface does: containerd 1.6 knows none that is later.
const version = "1.0.0"

// Configuration is the content of Conf: a pod's first interface is by a configuration list, which is part of it. Were it named instead, Multus would leave out what it does not
// know of its plugins' settings.
func Configuration(first []byte) ([]byte, error) {
	var list map[string]any
	if err := json.Unmarshal(first, &list); err != nil {
		return nil, fmt.Errorf("read the CNI configuration of the first interface: %w", err)
	}
	return json.MarshalIndent(map[string]any{
		"cniVersion": version, "name": "multus-cni-network", "type": "multus", "delegates": []any{list}, "kubeconfig": Kubeconfig,
		"binDir": "/opt/cni/bin", "cniDir": "/var/lib/cni/multus", "capabilities": map[string]bool{"portMappings": true},
		"logLevel": "error", "logFile": "/var/log/multus.log",
	}, "", "  ")
}
