package ovnpod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Raft's own ports are these, beside those of the clients, which the remotes name.
const raftOffset = 2 // NB 6641 and 6643, SB 6642 and 6644, as OVN's documentation has them

// Config is what all subcommands of godwit-ovn share.
type Config struct {
	// NBRemote and SBRemote are the databases as everybody connects to them: PROTOCOL:IP:PORT, with commas in between. Their addresses are those of the nodes that may
	// hold a member.
	NBRemote, SBRemote string
	// SBGate is the southbound database's gate for administrators, with ssl: remotes: the southbound database itself is for nodes then.
	SBGate string
	// ServerTLS and AdminTLS are directories with certificates, for ssl: remotes: that of the southbound database for nodes, and the administrators'.
	ServerTLS, AdminTLS string
	// PodName is the StatefulSet's pod, NAME-N; Namespace is where it runs.
	PodName, Namespace string
	// StateDir holds NB and SB, SwitchDir the local Open_vSwitch database.
	StateDir, SwitchDir string
	// RunDir and SwitchRunDir have the sockets of OVN and of Open vSwitch.
	RunDir, SwitchRunDir string
	// SchemaDir and SwitchSchemaDir have the schemas.
	SchemaDir, SwitchSchemaDir string
	// ElectionTimer is for how long the members of a new cluster do without their leader before they choose another; they take once to twice as long.
	ElectionTimer time.Duration
	// Nice is the niceness of the daemon.
	Nice int
	// Extra are arguments of the daemon, after all others.
	Extra []string
}

// Defaults are the paths of Debian's packages, and what fits most clusters.
func Defaults() Config {
	return Config{
		Namespace: "godwit-system", StateDir: "/var/lib/godwit/ovn", SwitchDir: "/var/lib/godwit/ovs", RunDir: "/run/ovn", SwitchRunDir: "/run/openvswitch",
		SchemaDir: "/usr/share/ovn", SwitchSchemaDir: "/usr/share/openvswitch", ElectionTimer: 2 * time.Second, Nice: -10,
		ServerTLS: "/etc/godwit-ovn/server", AdminTLS: "/etc/godwit-ovn/admin",
	}
}

// Bounds of the election timer: ovsdb-tool(1).
const (
	minElection = 100 * time.Millisecond
	maxElection = 10 * time.Minute
)

// Validate reports everything that is wrong with c.
func (c *Config) Validate() error {
	var errs []error
	for flag, path := range map[string]string{
		"--state-dir": c.StateDir, "--switch-dir": c.SwitchDir, "--run-dir": c.RunDir, "--switch-run-dir": c.SwitchRunDir,
		"--schema-dir": c.SchemaDir, "--switch-schema-dir": c.SwitchSchemaDir,
		"--server-tls-dir": c.ServerTLS, "--admin-tls-dir": c.AdminTLS,
	} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", flag, path))
		}
	}
	if c.ElectionTimer < minElection || c.ElectionTimer > maxElection {
		errs = append(errs, fmt.Errorf("--election-timer %s is not between %s and %s", c.ElectionTimer, minElection, maxElection))
	}
	if c.Nice < -20 || c.Nice > 19 {
		errs = append(errs, fmt.Errorf("--nice %d is not between -20 and 19", c.Nice))
	}
	return errors.Join(errs...)
}

// Database is one of OVN's two.
type Database struct {
	// Kind is "nb" or "sb", Name the schema's, Flag what its remotes are set by.
	Kind, Name, Flag string
	// Protocol is tcp or ssl; Port is the clients'.
	Protocol string
	Port     int
	// Hosts are the nodes that may hold a member.
	Hosts []netip.Addr
	// File, Schema, Socket and Control are paths.
	File, Schema, Socket, Control string
	// Peers is the directory of the sockets by which raft's members reach one another where its TLS would trust nodes.
	Peers string
}

// Database returns one of the two by its kind.
func (c *Config) Database(kind string) (Database, error) {
	d, remotes := c.named(kind), c.NBRemote
	if kind == ProbeSB {
		remotes = c.SBRemote
	}
	for remote := range strings.SplitSeq(remotes, ",") {
		protocol, address, _ := strings.Cut(remote, ":")
		host, err := parseHost(address)
		if err != nil || protocol != "tcp" && protocol != "ssl" {
			return Database{}, fmt.Errorf("%s %q: %q is not tcp:IP:PORT or ssl:IP:PORT, with [] around an IPv6 address", d.Flag, remotes, remote)
		}
		if d.Port != 0 && (d.Port != int(host.Port()) || d.Protocol != protocol) {
			return Database{}, fmt.Errorf("%s %q: all members have the same protocol and port", d.Flag, remotes)
		}
		d.Protocol, d.Port, d.Hosts = protocol, int(host.Port()), append(d.Hosts, host.Addr())
	}
	return d, nil
}

// named is a database on this node, without what the remotes say.
func (c *Config) named(kind string) Database {
	d := Database{
		Kind: kind, Name: "OVN_Northbound", Flag: "--nb-remote", File: filepath.Join(c.StateDir, kind+".db"), Schema: filepath.Join(c.SchemaDir, "ovn-"+kind+".ovsschema"),
		Socket: filepath.Join(c.RunDir, "ovn"+kind+"_db.sock"), Control: filepath.Join(c.RunDir, "ovn"+kind+"_db.ctl"), Peers: c.RunDir,
	}
	if kind == ProbeSB {
		d.Name, d.Flag = "OVN_Southbound", "--sb-remote"
	}
	return d
}

func parseHost(address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(ip, uint16(n)), err
}

// secure says whether clients come by TLS.
func (d Database) secure() bool { return d.Protocol == "ssl" }

// raftAddress is where members of the database find the one on a host. TLS is a process's: that of the southbound database's trusts nodes, who could be members then. Its members
// have a unix socket each, which has the same name on all hosts, and the gates stand for it on the others.
func (d Database) raftAddress(host netip.Addr) string {
	if d.secure() && d.Kind == ProbeSB {
		return "unix:" + d.peerSocket(host)
	}
	return d.Protocol + ":" + d.raftPort(host)
}

func (d Database) raftPort(host netip.Addr) string {
	return netip.AddrPortFrom(host, uint16(d.Port+raftOffset)).String()
}

func (d Database) peerSocket(host netip.Addr) string {
	return filepath.Join(d.Peers, d.Kind+"-"+strings.NewReplacer(".", "-", ":", "-").Replace(host.String())+".sock")
}

// local picks the database's host that is this node, from the node's addresses.
func (d Database) local(mine []netip.Addr) (netip.Addr, error) {
	for _, h := range d.Hosts {
		for _, m := range mine {
			if h == m {
				return h, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("none of this node's addresses %v is one of %s (%v): list the node there, in every component's settings, or take the label off it that "+
		"lets ovn-central run on it", mine, d.Flag, d.Hosts)
}

// others are the addresses of all possible members but the one on a host.
func (d Database) others(local netip.Addr) []string {
	var out []string
	for _, h := range d.Hosts {
		if h != local {
			out = append(out, d.raftAddress(h))
		}
	}
	return out
}

// Ordinal is the number at the end of a StatefulSet's pod's name.
func (c *Config) Ordinal() (int, error) {
	i := strings.LastIndexByte(c.PodName, '-')
	n, err := strconv.Atoi(c.PodName[i+1:])
	if i < 0 || err != nil || n < 0 {
		return 0, fmt.Errorf("--pod-name %q is not NAME-N: godwit-ovn nb and sb run in a StatefulSet", c.PodName)
	}
	return n, nil
}
