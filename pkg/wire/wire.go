// Package wire is what godwit-cni, which the container runtime starts for every operation, and godwit-agent say to each other: JSON over HTTP
// on a unix socket that only root can open.
//
// It imports neither Kubernetes nor OVSDB packages: godwit-cni is started for every pod and must be small.
package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/godwit-cni/godwit/pkg/ident"
)

// PluginName is the plugin's name in a CNI configuration ("type"), and so its file's name in the runtime's directory.
const PluginName = ident.PluginName

// SupportedVersions of the CNI specification: those that the plugin answers to. The configuration that the agent installs names one of them.
func SupportedVersions() version.PluginInfo { return version.VersionsStartingFrom("0.3.1") }

const (
	// Version is of the types below. Both ends are installed together; a request of another version is refused by name.
	Version = 1
	// DefaultSocket is where the agent listens.
	DefaultSocket = "/run/godwit/cni.sock"
	// maxBody bounds a request and a response in bytes. The largest is GC with every attachment of a node.
	maxBody = 4 << 20
	path    = "/v1/cni"
)

// CodeUnavailable is the CNI specification's error code of STATUS for "cannot service ADD now".
const CodeUnavailable = 50

// Command is a CNI operation.
type Command string

// The operations of CNI 1.1.0 that reach the agent; VERSION does not.
const (
	Add    Command = "ADD"
	Del    Command = "DEL"
	Check  Command = "CHECK"
	GC     Command = "GC"
	Status Command = "STATUS"
)

// Request is one CNI operation.
type Request struct {
	Version int     `json:"version"`
	Command Command `json:"command"`
	// Conf is the name of the CNI network configuration.
	Conf string `json:"conf,omitempty"`
	// Network is the Godwit network to attach to.
	Network     string `json:"network,omitempty"`
	ContainerID string `json:"containerID,omitempty"`
	Netns       string `json:"netns,omitempty"`
	IfName      string `json:"ifName,omitempty"`
	Pod         Pod    `json:"pod,omitzero"`
	// Valid are the attachments that GC keeps.
	Valid []Attachment `json:"valid,omitempty"`
	// Previous is what the runtime holds to be attached; for CHECK. Nil if it did not say.
	Previous *Result `json:"previous,omitempty"`
	// TimeoutMillis is how long the caller will wait.
	TimeoutMillis int64 `json:"timeoutMillis"`
}

// Attachment names one interface of one container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Response is the outcome: a Result for ADD, nothing for the other operations, or an Error.
type Response struct {
	Version int          `json:"version"`
	Result  *Result      `json:"result,omitempty"`
	Error   *types.Error `json:"error,omitempty"`
}

// Result is what ADD made.
type Result struct {
	// Host and Container are the two ends of the veth; Netns is the path of the container's namespace.
	Host      Link   `json:"host"`
	Container Link   `json:"container"`
	Netns     string `json:"netns"`
	// MTU of both ends in bytes.
	MTU int `json:"mtu"`
	// IPs are the container's addresses, IPv4 first.
	IPs []IP `json:"ips"`
}

// Link is one end of a veth.
type Link struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
}

// IP is one address and its default router, which only a pod's first interface has.
type IP struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// Validate reports everything that is wrong with the request. What it accepts is safe to use in row names and as an argument of netlink.
func (r *Request) Validate() error {
	var errs []error
	switch r.Command {
	case Add, Check, Del:
		errs = append(errs, r.validateAttachment()...)
	case GC:
		if r.Conf == "" {
			errs = append(errs, errors.New("conf is empty"))
		}
	case Status:
	default:
		errs = append(errs, fmt.Errorf("unknown command %q", r.Command))
	}
	if r.TimeoutMillis <= 0 {
		errs = append(errs, fmt.Errorf("timeoutMillis is %d, want more than 0", r.TimeoutMillis))
	}
	return errors.Join(errs...)
}

func (r *Request) validateAttachment() []error {
	var errs []error
	if r.ContainerID == "" {
		errs = append(errs, errors.New("containerID is empty"))
	}
	if !ident.ValidInterface(r.IfName) {
		errs = append(errs, fmt.Errorf("ifName %q is not an interface name of 1 to 15 characters", r.IfName))
	}
	if r.Command == Del {
		return errs // by container and ifName alone
	}
	if !filepath.IsAbs(r.Netns) {
		errs = append(errs, fmt.Errorf("netns %q is not an absolute path", r.Netns))
	}
	if err := r.Pod.Validate(); err != nil {
		errs = append(errs, err)
	}
	if r.Network != ident.DefaultNetwork {
		errs = append(errs, fmt.Errorf("network %q is not known: only %q exists; correct \"network\" in the CNI configuration %s",
			r.Network, ident.DefaultNetwork, r.Conf))
	}
	return errs
}
