package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

// problem is something on the node that keeps pods from their network and that is not the agent's to change.
type problem struct {
	// check names the kind; it is a metric's label.
	check string
	// what is found, and the remedy.
	what, remedy string
}

// The checks.
const (
	checkForward  = "forward"
	checkConflist = "conflist"
	checkServices = "services"
	checkLeftover = "leftover"
)

// otherNetworks are the beginnings of the names that other networks give their chains of iptables and nftables.
func otherNetworks() map[string]string {
	return map[string]string{
		"cali-": "Calico", "CILIUM_": "Cilium", "FLANNEL-": "flannel", "KUBE-ROUTER-": "kube-router", "ANTREA-": "Antrea", "OVN-KUBE-": "OVN-Kubernetes", "WEAVE": "Weave Net",
	}
}

// preflight looks for what other software left on the node. It changes nothing. The error says which checks could not be made; the others' problems are
// returned all the same.
func preflight(cfg Config, host hostNetwork) ([]problem, error) {
	var problems []problem
	drops, err := host.ForwardDrops(ident.GatewayInterface)
	for _, chain := range drops {
		problems = append(problems, problem{
			check: checkForward,
			what:  fmt.Sprintf("nftables chain %s drops what the node forwards (Docker sets this policy): pods reach nothing outside the cluster", chain),
			remedy: fmt.Sprintf("iptables -I FORWARD -i %[1]s -j ACCEPT; iptables -I FORWARD -o %[1]s -j ACCEPT (ip6tables for IPv6), or remove what sets the policy",
				ident.GatewayInterface),
		})
	}
	leftover, lerr := leftoverConfigurations(cfg.CNIConfDir)
	for _, name := range leftover {
		p := problem{
			check:  checkConflist,
			what:   fmt.Sprintf("another CNI's configuration %s sorts before %s: the container runtime uses it, and pods do not get Godwit's network", name, confName),
			remedy: "remove it from the node's CNI configuration directory",
		}
		problems = append(problems, p)
	}
	chains, cerr := host.Chains()
	problems = append(problems, foreign(chains, cfg)...)
	return problems, errors.Join(err, lerr, cerr)
}

// foreign finds chains that another network has left, or kube-proxy where the agent serves Services itself.
func foreign(chains []netdev.Chain, cfg Config) (problems []problem) {
	left := map[string][]string{}
	var proxy []string
	for _, c := range chains {
		if c.Name == "KUBE-SERVICES" || c.Table == "kube-proxy" {
			proxy = append(proxy, c.String())
		}
		for prefix, network := range otherNetworks() {
			if strings.HasPrefix(c.Name, prefix) {
				left[network] = append(left[network], c.String())
			}
		}
	}
	if cfg.Services && len(proxy) > 0 {
		problems = append(problems, problem{
			check:  checkServices,
			what:   fmt.Sprintf("kube-proxy serves Services on this node, or has left its rules (nftables chain %s): connections may go to endpoints that are gone", proxy[0]),
			remedy: "delete kube-proxy and restart the node, or run kube-proxy --cleanup on it; or leave Services to kube-proxy: --services=false of godwit-agent and godwit-controller",
		})
	}
	for _, network := range slices.Sorted(maps.Keys(left)) {
		problems = append(problems, problem{
			check:  checkLeftover,
			what:   fmt.Sprintf("%s has left rules (nftables chain %s, %d in all): they may drop or translate what pods send", network, left[network][0], len(left[network])),
			remedy: "delete " + network + " and restart the node, or remove its chains",
		})
	}
	return problems
}

// delegates says whether a configuration is that of Multus, which leaves a pod's first interface to another plugin: to us, if it is set up well. A file that is no
// configuration does not.
func delegates(path string) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	var conf struct {
		Type    string `json:"type"`
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(text, &conf) != nil {
		return false
	}
	if len(conf.Plugins) > 0 {
		conf.Type = conf.Plugins[0].Type
	}
	return conf.Type == "multus" || conf.Type == "multus-shim"
}

// leftoverConfigurations are those that a container runtime prefers to ours: it takes the first by name.
func leftoverConfigurations(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for CNI configurations: %w", err)
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name)) && !strings.HasPrefix(name, ".") && name < confName &&
			!delegates(filepath.Join(dir, name)) {
			names = append(names, name)
		}
	}
	return names, nil
}
