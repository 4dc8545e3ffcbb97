// Package boot is pid 1 of the lab's machines: the hub (Kubernetes' control plane, and OVN's where it is there before Godwit), the nodes, and the outside host. A machine is
// a process in namespaces of its own; everything that it is made of goes when that process goes.
package boot

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Kind is what a machine is.
type Kind string

// The kinds of machines.
const (
	Hub     Kind = "hub"
	Node    Kind = "node"
	Outside Kind = "outside"
)

// Ports in the hub.
const (
	APIPort = 6443
	NBPort  = 6641
	SBPort  = 6642
)

// Links of a machine.
const (
	MgmtLink = "eth0"
	TunLink  = "eth1"
	// UnderlayBridge holds TunLink and its addresses where OVS runs in userspace: it tunnels over a bridge's own port, not over a kernel link.
	UnderlayBridge = "br-phys"
	// ProductBridge is Godwit's own in its place, where OVN and Open vSwitch are pods.
	ProductBridge = "br-underlay"
)

// PauseImage is the image of every pod's sandbox.
const PauseImage = "docker.io/godwitcni/lab-pause:1"

// Spec describes a machine to its pid 1. All paths are the host's.
type Spec struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	// Dir is the machine's own directory: its status and, of a node, what survives a reboot.
	Dir string `json:"dir"`
	// Logs is the directory of the machine's logs.
	Logs string `json:"logs"`
	// Cgroups are the machine's control group directories; Hierarchies the version 1 hierarchies that it mounts, none in version 2.
	Cgroups     []string `json:"cgroups"`
	Hierarchies []string `json:"hierarchies"`
	// Packages is the tree of unpacked packages, Kubernetes and CNI the directories of built programs, Images that of image archives.
	Packages   string `json:"packages"`
	Kubernetes string `json:"kubernetes"`
	CNI        string `json:"cni"`
	Images     string `json:"images"`
	// Containerd is a directory with a containerd for a node, empty if it has the packages'.
	Containerd string `json:"containerd,omitempty"`
	// Mgmt and Tun are the machine's addresses on its links. A hub has none here: whoever starts it makes its bridges.
	Mgmt []netip.Prefix `json:"mgmt"`
	Tun  []netip.Prefix `json:"tun"`
	// TunMAC is the MAC address that goes with Tun; it is the same after a reboot, like that of a network card.
	TunMAC string `json:"tunMAC"`
	// HubIPs are the hub's addresses on the management network, the first one being the API server's; default routes go there.
	HubIPs []netip.Addr `json:"hubIPs"`
	// ServiceCIDRs are the cluster's, in the order of its families.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// Userspace says that OVS has no kernel datapath on this machine.
	Userspace bool `json:"userspace"`
	// OVNPods says that OVN and Open vSwitch are the cluster's own pods.
	OVNPods bool `json:"ovnPods,omitempty"`
	// Program is this program, where it stays.
	Program string `json:"program"`
	// Index is the node's number, from 1.
	Index int `json:"index"`
}

// Credentials of the lab, in the directory that Secrets returns.
const (
	CACert        = "ca.crt"
	ServerCert    = "apiserver.crt"
	ServerKey     = "apiserver.key"
	KubeletCert   = "kubelet-client.crt"
	KubeletKey    = "kubelet-client.key"
	AccountKey    = "service-account.key"
	Tokens        = "tokens.csv"
	ManagerConfig = "kube-controller-manager.kubeconfig"
	SchedConfig   = "kube-scheduler.kubeconfig"
	NodeConfig    = "kubelet.kubeconfig"
	// KubeVirtConfig is the hub's, for the stand-in.
	KubeVirtConfig = "kubevirt.kubeconfig"
)

// Secrets is the directory of the machine's credentials.
func (s *Spec) Secrets() string { return filepath.Join(s.Dir, "secrets") }

// StatusFile is where the machine's supervisor writes its services' status.
func (s *Spec) StatusFile() string { return filepath.Join(s.Dir, "status.json") }

// ReadSpec reads a machine's description.
func ReadSpec(path string) (*Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the machine's description: %w", err)
	}
	var s Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read the machine's description in %s: %w", path, err)
	}
	return &s, nil
}

// apiAddress is where nodes reach the API server.
func (s *Spec) apiAddress() netip.AddrPort { return netip.AddrPortFrom(s.HubIPs[0], APIPort) }
