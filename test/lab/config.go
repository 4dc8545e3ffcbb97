// Package lab is a Kubernetes cluster with OVN on one Linux machine: real etcd, API server, controller-manager and scheduler, and nodes with
// real kubelet, containerd, Open vSwitch and ovn-controller, each in namespaces of its own. Nothing is installed, and nothing outside the lab's own
// namespaces, control groups and directory changes.
//
// A lab outlives the process that made it. It is described by a state file in its directory, which is written before anything is created, so that a lab
// whose maker was killed can be repaired by Up and removed by Down.
package lab

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Families of a cluster.
const (
	DualStack = "dual"
	IPv4      = "ipv4"
	IPv6      = "ipv6"
)

// What wires a cluster's pods.
const (
	CNIGodwit = "godwit"
	CNINone   = "none"
)

// Where OVN and Open vSwitch run.
const (
	OVNProcesses = "processes"
	OVNPods      = "pods"
)

// Which containerd nodes have: that of Debian 12, 1.6, or the newest, which is built.
const (
	ContainerdPackage = "package"
	ContainerdNew     = "new"
)

// centralMembers are how many members OVN's databases have in pods.
const centralMembers = 3

const (
	dirVariable = "GODWIT_LAB_DIR"
	defaultDir  = "/var/lib/godwit-lab"
	defaultName = "default"
	maxNodes    = 64
	// maxDir keeps the paths of unix sockets below the directory within the kernel's 107 bytes.
	maxDir = 70
)

// Config describes a lab. Zero values stand for what an existing lab has, and for defaults in a new one.
type Config struct {
	// Name tells labs on one machine apart; "default" by default.
	Name string
	// Nodes is their number; 3 by default. Up can add nodes to a lab, not remove them.
	Nodes int
	// IPFamily is DualStack, the default, IPv4 or IPv6.
	IPFamily string
	// CNI is CNIGodwit, the default, or CNINone. Nodes without a CNI stay NotReady.
	CNI string
	// OVN is OVNPods, the default with CNIGodwit: OVN and Open vSwitch are pods of yamls/ovn.yaml, and nodes start with kubelet and containerd alone. With
	// OVNProcesses they are there before Godwit is, without TLS: OVN's databases and northd run on the hub, Open vSwitch and ovn-controller on the nodes, as processes of
	// the machines.
	OVN string
	// Containerd is ContainerdPackage, the default, or ContainerdNew.
	Containerd string
	// Plain lets OVNPods do without TLS and certificates, which yamls/ has. An existing lab stays what it is.
	Plain bool
	// Empty leaves Godwit out, as a cluster is before the install: the nodes are not Ready. Up without it goes on from there.
	Empty bool
	// Program is a godwit-lab program, which runs as pid 1 of the lab's machines; it is built from the checkout by default.
	Program string
	// Reload restarts Godwit's pods even if the image has not changed.
	Reload bool
	// Keep leaves what there is when Up fails or is interrupted, for a look at it. Otherwise a new lab is removed then; an existing one never is.
	Keep bool
	// Own makes a new lab, and one whose owner has died, this process's: Owned says so, it is to be removed in the end, and nobody else's Up uses it meanwhile.
	Own bool
	// Log gets the progress.
	Log *slog.Logger
}

// inherit returns c with what an existing lab has in place of zero values.
func (c Config) inherit(s *state) Config {
	c.Nodes, c.IPFamily, c.CNI = cmp.Or(c.Nodes, s.Nodes), cmp.Or(c.IPFamily, s.IPFamily), cmp.Or(c.CNI, s.CNI)
	c.OVN, c.Containerd, c.Plain = cmp.Or(c.OVN, s.ovn()), cmp.Or(c.Containerd, s.containerd()), s.Plain
	return c
}

// Defaults returns c with defaults in place of zero values.
func (c Config) Defaults() Config {
	c.Name, c.Nodes = cmp.Or(c.Name, defaultName), cmp.Or(c.Nodes, 3)
	c.IPFamily, c.CNI = cmp.Or(c.IPFamily, DualStack), cmp.Or(c.CNI, CNIGodwit)
	if c.OVN == "" && c.CNI == CNIGodwit {
		c.OVN = OVNPods
	}
	c.OVN, c.Containerd = cmp.Or(c.OVN, OVNProcesses), cmp.Or(c.Containerd, ContainerdPackage)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q: want at most 20 of a-z, 0-9 and dashes", name)
	}
	return nil
}

// Validate reports everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	if err := checkName(c.Name); err != nil {
		errs = append(errs, err)
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("%d nodes: want 1 to %d", c.Nodes, maxNodes))
	}
	if c.IPFamily != DualStack && c.IPFamily != IPv4 && c.IPFamily != IPv6 {
		errs = append(errs, fmt.Errorf("ip family %q: want %s, %s or %s", c.IPFamily, DualStack, IPv4, IPv6))
	}
	if c.CNI != CNIGodwit && c.CNI != CNINone {
		errs = append(errs, fmt.Errorf("cni %q: want %s or %s", c.CNI, CNIGodwit, CNINone))
	}
	if c.OVN != OVNProcesses && c.OVN != OVNPods {
		errs = append(errs, fmt.Errorf("ovn %q: want %s or %s", c.OVN, OVNProcesses, OVNPods))
	}
	if c.Containerd != ContainerdPackage && c.Containerd != ContainerdNew {
		errs = append(errs, fmt.Errorf("containerd %q: want %s or %s", c.Containerd, ContainerdPackage, ContainerdNew))
	}
	if c.OVN == OVNPods && c.CNI != CNIGodwit {
		errs = append(errs, fmt.Errorf("ovn %s and cni %s: the pods are Godwit's", c.OVN, c.CNI))
	}
	return errors.Join(errs...)
}

// Dir is the directory of the lab of that name.
func Dir(name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("find the lab: %w", err)
	}
	base := os.Getenv(dirVariable)
	if base == "" {
		base = defaultDir
	}
	abs, err := filepath.Abs(base)
	if err != nil {
		return "", fmt.Errorf("resolve %s=%s: %w", dirVariable, base, err)
	}
	dir := filepath.Join(abs, name)
	if len(dir) > maxDir || strings.ContainsAny(dir, ":,\\") {
		return "", fmt.Errorf("directory %s: want at most %d bytes and no colon, comma or backslash, for unix sockets and overlay mounts: "+
			"set %s to another", dir, maxDir, dirVariable)
	}
	return dir, nil
}

// The lab's networks. They exist in the lab's own namespaces only, so every lab has the same.
var (
	mgmtNet = [2]netip.Prefix{netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00:172:30::/64")}
	tunNet  = [2]netip.Prefix{netip.MustParsePrefix("172.30.1.0/24"), netip.MustParsePrefix("fd00:172:30:1::/64")}
	podNet  = [2]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")}
	joinNet = [2]netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd98::/64")}
	svcNet  = [2]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
)

// Host numbers in mgmtNet and tunNet.
const (
	hubHost     = 1
	firstNode   = 11
	outsideHost = 200
)

// families selects one's own of an IPv4 and an IPv6 value.
func families[T any](family string, both [2]T) []T {
	switch family {
	case IPv4:
		return []T{both[0]}
	case IPv6:
		return []T{both[1]}
	}
	return both[:]
}

// hostAddresses are a host's addresses in a network. The digits of the number are the same in both families, for the reader's sake.
func hostAddresses(family string, networks [2]netip.Prefix, host int) []netip.Prefix {
	var ps []netip.Prefix
	for _, n := range families(family, networks) {
		base := strings.TrimSuffix(n.Addr().String(), "0")
		ps = append(ps, netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("%s%d", base, host)), n.Bits()))
	}
	return ps
}

// hostMAC is the MAC address of a host's place in a network: the same after a repair, so that nobody has to learn a new one.
func hostMAC(bridge string, host int) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x67, 0, 0, 0, byte(host)}
	if bridge == tunBridge {
		mac[4] = 1
	}
	return mac
}

func addrs(ps []netip.Prefix) []netip.Addr {
	var as []netip.Addr
	for _, p := range ps {
		as = append(as, p.Addr())
	}
	return as
}

func join[T fmt.Stringer](vs []T) string {
	var s []string
	for _, v := range vs {
		s = append(s, v.String())
	}
	return strings.Join(s, ",")
}
