// Package agent is what runs on every node: it makes the node a chassis, keeps its gateway ovn0, attaches pods for godwit-cni, and installs
// godwit-cni with its configuration.
//
// Inputs: its own Node, the Pods of the node, Subnets, PortMigrations from and to the node; Services, EndpointSlices and Ports; links and addresses of the node, frames of VMs that migrate, what
// their launchers' libvirt tells; what the agents of the nodes say that they migrate from; the local Open_vSwitch database.
// Outputs: Open_vSwitch and kernel state of the node, the Node's annotation godwit.dev/mtu, its Lease if it can be a gateway, status.source and status.target of PortMigrations, two files, and with TLS
// the node's certificate and a request for it; what it says to the agents of the nodes that VMs migrate to. It never writes NB or SB.
package agent

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/ovs"
	"github.com/godwit-cni/godwit/pkg/wire"
)

// DatapathAuto takes the kernel's datapath where the kernel has it, else the userspace one.
const DatapathAuto = "auto"

// Config is the agent's configuration.
type Config struct {
	// NodeName is the name of the Node object that the agent runs on.
	NodeName string
	// Namespace is where Godwit runs.
	Namespace string
	// OVSEndpoint is the local Open_vSwitch database.
	OVSEndpoint string
	// OVNRunDir has ovn-controller's control socket, which is asked for metrics; where it has none, they are missing and nothing else.
	OVNRunDir string
	// SBRemote is the southbound database as ovn-controller connects to it, a comma-separated list of tcp:IP:PORT or ssl:IP:PORT.
	SBRemote string
	// OVNTLSDir is where the agent keeps the node's certificate for an SBRemote that is reached by TLS, the same path for ovn-controller; empty without TLS.
	OVNTLSDir string
	// NodeTLSDir is where the agent keeps the node's certificate if OVNTLSDir is empty: for other agents alone. Both empty: there is no certificate, and no switch-over signal.
	NodeTLSDir string
	// Switchover: agents tell one another when a migration has stopped a VM.
	Switchover bool
	// SwitchoverPort is the TCP port on which agents listen for that, the same on all nodes.
	SwitchoverPort int
	// Handoff: connections of a VM that migrates are handed over, where Switchover is on and Open vSwitch has the kernel's datapath.
	Handoff bool
	// PodsDir is the kubelet's directory of pods, in which launchers have libvirt's socket.
	PodsDir string
	// Underlay says which address tunnels end at: an interface's name, or a CIDR that contains it. The Node's InternalIP if empty.
	Underlay string
	// UnderlayBridge is the bridge that the underlay's link is put into on the userspace datapath, with its addresses; empty: somebody else has made one.
	UnderlayBridge string
	// MTU of pods in bytes; the underlay interface's less the tunnel's overhead if 0.
	MTU int
	// Datapath is DatapathAuto, ovs.DatapathSystem or ovs.DatapathNetdev.
	Datapath string
	// CNISocket is where godwit-cni reaches the agent; the same path on the host.
	CNISocket string
	// CNIBinSource is the godwit-cni that CNIBinDir gets a copy of. CNIConfDir gets the CNI configuration.
	CNIBinSource, CNIBinDir, CNIConfDir string
	// MetricsAddress serves /metrics, /healthz and /readyz.
	MetricsAddress string
	// Services: the agent serves Services for the node. If not, somebody else does, such as kube-proxy.
	Services bool
	// HostNetns is the node's network namespace; the agent's own if empty, as it is in a pod with hostNetwork.
	HostNetns string
}

// Defaults fills in what a usual node needs. NodeName and SBRemote have none.
func Defaults() Config {
	return Config{
		Namespace: "godwit-system", OVSEndpoint: ovs.DefaultEndpoint, OVNRunDir: "/run/ovn", Datapath: DatapathAuto, CNISocket: wire.DefaultSocket,
		CNIBinSource: "/usr/bin/godwit-cni", CNIBinDir: "/host/opt/cni/bin", CNIConfDir: "/host/etc/cni/net.d", MetricsAddress: ":9476",
		Services: true, Switchover: true, Handoff: true, SwitchoverPort: 9480, PodsDir: "/var/lib/kubelet/pods",
	}
}

// Validate reports everything that is wrong.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.NodeName == "" {
		bad("--node-name is empty: set it to spec.nodeName of the agent's pod")
	}
	if c.NodeName == string(ident.NoChassis) {
		bad("--node-name %s is reserved for ports that no node may carry: rename the node", c.NodeName)
	}
	if c.Namespace == "" {
		bad("--namespace is empty: set it to the namespace of the agent's pod")
	}
	if err := c.validRemote(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, c.validSwitchover())
	if !strings.HasPrefix(c.OVSEndpoint, "unix:/") {
		bad("--ovs-db %q is not unix:/PATH: the agent makes links for the Open vSwitch of its own node", c.OVSEndpoint)
	}
	if strings.Contains(c.Underlay, "/") {
		if _, err := netip.ParsePrefix(c.Underlay); err != nil {
			bad("--underlay %q is neither an interface's name nor a CIDR", c.Underlay)
		}
	}
	if c.MTU != 0 && !v1alpha1.MTUInBounds(c.MTU) {
		bad("--mtu %d is not between %d and %d", c.MTU, v1alpha1.MinMTU, v1alpha1.MaxMTU)
	}
	if c.Datapath != DatapathAuto && c.Datapath != ovs.DatapathSystem && c.Datapath != ovs.DatapathNetdev {
		bad("--datapath %q is none of auto, system, netdev", c.Datapath)
	}
	for flag, path := range map[string]string{
		"--cni-socket": c.CNISocket, "--cni-bin-source": c.CNIBinSource, "--cni-bin-dir": c.CNIBinDir, "--cni-conf-dir": c.CNIConfDir,
		"--ovn-run-dir": c.OVNRunDir,
	} {
		if !filepath.IsAbs(path) {
			bad("%s %q is not an absolute path", flag, path)
		}
	}
	if _, _, err := net.SplitHostPort(c.MetricsAddress); err != nil {
		bad("--metrics-address %q is not [IP]:PORT", c.MetricsAddress)
	}
	return errors.Join(errs...)
}

// validSwitchover: the node's certificate, and what agents need to speak with one another.
func (c *Config) validSwitchover() error {
	var errs []error
	for flag, dir := range map[string]string{"--ovn-tls-dir": c.OVNTLSDir, "--node-tls-dir": c.NodeTLSDir} {
		if dir != "" && !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", flag, dir))
		}
	}
	if c.OVNTLSDir != "" && c.NodeTLSDir != "" && c.OVNTLSDir != c.NodeTLSDir {
		errs = append(errs, fmt.Errorf("--node-tls-dir %q and --ovn-tls-dir %q: a node has one certificate: leave the former out", c.NodeTLSDir, c.OVNTLSDir))
	}
	if c.Switchover && (c.SwitchoverPort < 1 || c.SwitchoverPort > math.MaxUint16) {
		errs = append(errs, fmt.Errorf("--switchover-port %d is no TCP port", c.SwitchoverPort))
	}
	if c.Switchover && !filepath.IsAbs(c.PodsDir) {
		errs = append(errs, fmt.Errorf("--pods-dir %q is not an absolute path", c.PodsDir))
	}
	return errors.Join(errs...)
}

// certificateDir is where the node's certificate is, empty if it has none.
func (c *Config) certificateDir() string { return cmp.Or(c.OVNTLSDir, c.NodeTLSDir) }

// validRemote: all of the remotes by TLS and a place for the certificate, or none of both.
func (c *Config) validRemote() error {
	for r := range strings.SplitSeq(c.SBRemote, ",") {
		proto, addr, _ := strings.Cut(r, ":")
		switch {
		case proto == "ssl" && addr != "" && c.OVNTLSDir == "":
			return fmt.Errorf("--sb-remote %q is reached by TLS, which needs --ovn-tls-dir: where the node's certificate is kept, such as /etc/godwit/tls", r)
		case proto == "tcp" && addr != "" && c.OVNTLSDir != "":
			return fmt.Errorf("--sb-remote %q would be reached without TLS though there is --ovn-tls-dir: write ssl:, or name the directory by --node-tls-dir, for a certificate between agents alone", r)
		case (proto == "tcp" || proto == "ssl") && addr != "", proto == "unix" && filepath.IsAbs(addr):
		default:
			return fmt.Errorf("--sb-remote %q: %q is not tcp:IP:PORT, ssl:IP:PORT or unix:/PATH", c.SBRemote, r)
		}
	}
	return nil
}
