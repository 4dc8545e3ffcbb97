package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ident"
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
)

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
	return problems, errors.Join(err, lerr)
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
