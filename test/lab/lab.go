package lab

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/test/lab/binaries"
	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// Files of a lab's directory. Machines have a directory each below machines and logs.
const (
	programFile    = "godwit-lab"
	kubeconfigFile = "kubeconfig"
	secretsDir     = "secrets"
	imagesDir      = "images"
	machinesDir    = "machines"
	logsDir        = "logs"
)

// Lab is a lab on this machine. Its methods are safe for concurrent use.
type Lab struct {
	dir string
	log *slog.Logger

	mu    sync.Mutex
	state *state

	packages *packages.Root
	binaries *binaries.Set
	// containerd is the directory of ContainerdNew's programs, empty without.
	containerd string
}

// Open returns the lab in a directory, as Dir names it, that Up has made.
func Open(dir string) (*Lab, error) {
	s, err := readState(dir)
	if err != nil {
		return nil, err
	}
	return &Lab{dir: dir, log: slog.New(slog.DiscardHandler), state: s}, nil
}

// LogTo makes log get the progress from here on; a lab that was opened says nothing. It is called before other methods.
func (l *Lab) LogTo(log *slog.Logger) { l.log = log }

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Owned says whether the lab is this process's, which has to remove it: see Config.Own.
func (l *Lab) Owned() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Owner.Pid == os.Getpid() && l.state.Owner.alive()
}

// Kubeconfig is the path of the administrator's kubeconfig, for use on this machine.
func (l *Lab) Kubeconfig() string { return l.path(kubeconfigFile) }

// NB is the northbound database's endpoint, reachable in every namespace of this machine.
func (l *Lab) NB() string { return l.database("nb") }

// SB is the southbound database's endpoint, reachable in every namespace of this machine.
func (l *Lab) SB() string { return l.database("sb") }

// database is the endpoint of one of OVN's databases; where they are pods, of the member on the first node that runs.
func (l *Lab) database(kind string) string {
	if l.ovn() != OVNPods {
		return "unix:" + filepath.Join(boot.OVNDir(l.machineDir(hubName)), kind+".sock")
	}
	nodes := l.central()
	at := nodes[0]
	for _, name := range nodes {
		if l.running(name) {
			at = name
			break
		}
	}
	return l.Database(at, kind)
}

// Database is the endpoint of a node's member of a database, "nb" or "sb", where those are pods: reachable in every namespace of this machine.
func (l *Lab) Database(node, kind string) string {
	return "unix:" + filepath.Join(boot.OVNDir(l.machineDir(node)), "ovn"+kind+"_db.sock")
}

func (l *Lab) ovn() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.ovn()
}

// tls says whether OVN's databases are reached by TLS, as they are where they are pods.
func (l *Lab) tls() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.ovn() == OVNPods && !l.state.Plain
}

// central are the nodes that hold OVN's databases where those are pods: three, or one in a lab that has fewer.
func (l *Lab) central() []string {
	nodes := l.NodeNames()
	if len(nodes) < centralMembers {
		return nodes[:1]
	}
	return nodes[:centralMembers]
}

// Central are the machines that run OVN's databases: the hub, or nodes where those are pods.
func (l *Lab) Central() []string {
	if l.ovn() != OVNPods {
		return []string{hubName}
	}
	return l.central()
}

// IPFamily is DualStack, IPv4 or IPv6.
func (l *Lab) IPFamily() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.IPFamily
}

// NodeNames are the names of the lab's nodes, in order.
func (l *Lab) NodeNames() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	names := make([]string, l.state.Nodes)
	for i := range names {
		names[i] = nodeName(i + 1)
	}
	return names
}

// NodeIPs are a node's addresses on the management network, IPv4 first; none for a node that does not exist.
func (l *Lab) NodeIPs(name string) []netip.Addr {
	i := slices.Index(l.NodeNames(), name)
	if i < 0 {
		return nil
	}
	return addrs(hostAddresses(l.IPFamily(), mgmtNet, firstNode+i))
}

// OutsideIPs are the addresses of the host that is no node, IPv4 first. It serves TCP and UDP on port 7, HTTP on 80 and iperf3 on 5201.
func (l *Lab) OutsideIPs() []netip.Addr {
	return addrs(hostAddresses(l.IPFamily(), mgmtNet, outsideHost))
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

func (l *Lab) path(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }

func (l *Lab) machineDir(name string) string { return l.path(machinesDir, name) }

func (l *Lab) specPath(name string) string { return l.path(machinesDir, name+".json") }

func (l *Lab) name() string { return l.state.Name }

// machine is what is on record of a machine; the zero value when nothing is.
func (l *Lab) machine(name string) machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.state.Machines[name]; m != nil {
		return *m
	}
	return machine{}
}

// record changes what is on record of a machine.
func (l *Lab) record(name string, change func(*machine)) error {
	return l.update(func(s *state) {
		if s.Machines[name] == nil {
			s.Machines[name] = &machine{}
		}
		change(s.Machines[name])
	})
}

func (l *Lab) update(change func(*state)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l.state)
	return writeState(l.dir, l.state)
}

// spec describes a machine.
func (l *Lab) spec(kind boot.Kind, name string, index int) *boot.Spec {
	family := l.IPFamily()
	s := &boot.Spec{
		Kind: kind, Name: name, Index: index, Dir: l.machineDir(name), Logs: l.path(logsDir, name), Packages: l.packages.Dir(),
		Kubernetes: l.binaries.Kubernetes(), CNI: l.binaries.CNI(), Images: l.path(imagesDir), Program: l.path(programFile), Userspace: !kernelDatapath(),
		HubIPs: addrs(hostAddresses(family, mgmtNet, hubHost)), ServiceCIDRs: families(family, svcNet),
	}
	s.OVNPods, s.Containerd = l.ovn() == OVNPods, l.containerd
	switch kind {
	case boot.Node:
		s.TunMAC = hostMAC(tunBridge, hostNumber(s)).String()
		s.Mgmt, s.Tun = hostAddresses(family, mgmtNet, hostNumber(s)), hostAddresses(family, tunNet, hostNumber(s))
	case boot.Outside:
		s.Mgmt = hostAddresses(family, mgmtNet, hostNumber(s))
	case boot.Hub:
	}
	return s
}

// kernelDatapath says whether the kernel has Open vSwitch; asking for it loads its module where there is one.
func kernelDatapath() bool {
	_, err := netlink.GenlFamilyGet("ovs_datapath")
	return err == nil
}

// makeDirs makes a machine's directories.
func makeDirs(spec *boot.Spec) error {
	for dir, mode := range map[string]os.FileMode{spec.Dir: 0o700, spec.Secrets(): 0o700, spec.Logs: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make the directories of %s: %w", spec.Name, err)
		}
	}
	return nil
}
