// Package cni is the CNI plugin: it turns what the container runtime says into a request to the agent, and the agent's answer into a CNI
// result. It holds no state and decides nothing.
package cni

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// Timeouts of one operation. kubelet's own limit on a whole chain is two minutes. The agent is told how long the plugin waits, and ends before it, by as much as
// it needs to undo what it made and to say what was missing.
const (
	addTimeout   = 55 * time.Second
	otherTimeout = 30 * time.Second
)

// netConf is the plugin's CNI configuration.
type netConf struct {
	types.PluginConf
	// Socket is where the agent listens; wire.DefaultSocket if empty.
	Socket string `json:"socket,omitempty"`
	// Network is the Godwit network to attach to; the default network if empty.
	Network string `json:"network,omitempty"`

	previous *current.Result
}

// parseConf reads the configuration with its prevResult; its errors are *types.Error.
func parseConf(stdin []byte) (*netConf, error) {
	c := &netConf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode CNI configuration", err.Error())
	}
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("socket %q is not an absolute path", c.Socket), "")
	}
	if c.Network == "" {
		c.Network = ident.DefaultNetwork
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode prevResult", err.Error())
	}
	if c.PrevResult != nil {
		prev, err := current.NewResultFromResult(c.PrevResult)
		if err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "convert prevResult", err.Error())
		}
		c.previous = prev
	}
	return c, nil
}
