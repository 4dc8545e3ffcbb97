package agent

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// hostNetwork is the kernel; netdev.Host implements it.
type hostNetwork interface {
	Addrs() ([]netdev.HostAddr, error)
	Watch(ctx context.Context, e netdev.Events) error
	EnableForwarding(addrs []netip.Prefix) error
	ConfigureGateway(g netdev.Gateway) error
	SyncRoutes(link string, routes []netdev.Route) ([]netdev.Blocked, error)
	ForwardDrops(link string) ([]string, error)
	Chains() ([]netdev.Chain, error)
	Masquerade(ctx context.Context, m netdev.Masquerade) error
	EndTranslated(m netdev.Masquerade, former []netdev.Translation) error
	RemoveBalancer(ctx context.Context) error
	Borrowed() ([]netdev.Borrowed, error)
	SyncBorrowed(want []netdev.Borrowed, life time.Duration) (netdev.Loans, error)

	CreateVeth(v netdev.Veth) (net.HardwareAddr, error)
	ConfigureContainer(netns string, i netdev.Interface) error
	CheckContainer(netns string, want netdev.Interface) error
	CheckLauncher(netns string, want netdev.Interface) error
	DeleteLink(name string) error
	HostSides() ([]netdev.HostSide, error)
	DeleteIndex(index int) error
	Holdings(link string) (netdev.Holdings, error)
	TakeOver(to, from string, held netdev.Holdings) error
	LinkMAC(name string) (mac net.HardwareAddr, found bool, err error)
	SameNetns(path string) (bool, error)
	Counters() (map[string]netdev.Counters, error)
}

// switchDB is the local Open vSwitch; *ovs.Client implements it.
type switchDB interface {
	Ping(ctx context.Context) error
	SupportsDatapath(ctx context.Context, datapath string) error
	EnsureBridge(ctx context.Context, datapath string) error
	TrackLoosely(ctx context.Context) error
	AvoidZeroSNAT(ctx context.Context) (avoided bool, err error)
	EncapIP(ctx context.Context) (netip.Addr, error)
	EnsureChassis(ctx context.Context, ch ovs.Chassis) (changed []string, err error)

	HasInterface(ctx context.Context, name string) (bool, error)
	Underlay(ctx context.Context, bridge string) (u ovs.Underlay, found bool, err error)
	CreateUnderlay(ctx context.Context, u ovs.Underlay) error
	AddUnderlay(ctx context.Context, u ovs.Underlay) error

	EnsurePort(ctx context.Context, p ovs.Port) error
	DeletePorts(ctx context.Context, names ...string) error
	Withdraw(ctx context.Context, name string) error
	Restore(ctx context.Context, name string) error
	Port(ctx context.Context, name string) (ovs.PortStatus, error)
	PodPorts(ctx context.Context) ([]ovs.PortStatus, error)
	Tunnels(ctx context.Context) (all, failed int, err error)
	Zones(ctx context.Context) (map[string]uint16, error)
	WaitInstalled(ctx context.Context, name string) error
	WaitBlocked(ctx context.Context, name string) error
	WatchOpened(ctx context.Context, name string, tell func(opened time.Time)) error
}

var (
	_ hostNetwork = netdev.Host{}
	_ switchDB    = (*ovs.Client)(nil)
)
