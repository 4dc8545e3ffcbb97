package cni

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/godwit-cni/godwit/pkg/wire"
)

// print writes the agent's answer as a CNI result of the configuration's version. A result of earlier plugins of the chain keeps its place, ours
// is appended.
func (p *Plugin) print(conf *netConf, res *wire.Result) error {
	out := toResult(conf.previous, res)
	versioned, err := out.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return types.NewError(types.ErrIncompatibleCNIVersion, "convert result to version "+conf.CNIVersion, err.Error())
	}
	if err := versioned.PrintTo(p.Stdout); err != nil {
		return types.NewError(types.ErrIOFailure, "print result", err.Error())
	}
	return nil
}

func toResult(previous *current.Result, res *wire.Result) *current.Result {
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if previous != nil {
		out = previous
	}
	out.Interfaces = append(out.Interfaces,
		&current.Interface{Name: res.Host.Name, Mac: res.Host.MAC, Mtu: res.MTU},
		&current.Interface{Name: res.Container.Name, Mac: res.Container.MAC, Mtu: res.MTU, Sandbox: res.Netns},
	)
	container := len(out.Interfaces) - 1
	for _, ip := range res.IPs {
		out.IPs = append(out.IPs, &current.IPConfig{Interface: current.Int(container), Address: ipNet(ip.Address), Gateway: ip.Gateway.AsSlice()})
		if !ip.Gateway.IsValid() {
			continue
		}
		any4or6 := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if ip.Gateway.Is4() {
			any4or6 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(any4or6), GW: ip.Gateway.AsSlice()})
	}
	return out
}

// fromResult picks out of a chain's result what this plugin made for the interface.
func fromResult(r *current.Result, args *skel.CmdArgs) (*wire.Result, error) {
	index := -1
	for i, iface := range r.Interfaces {
		if iface.Name == args.IfName && iface.Sandbox == args.Netns {
			index = i
		}
	}
	if index < 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("prevResult has no interface %s in %s", args.IfName, args.Netns), "")
	}
	out := &wire.Result{
		Container: wire.Link{Name: args.IfName, MAC: r.Interfaces[index].Mac}, Netns: args.Netns, MTU: r.Interfaces[index].Mtu,
	}
	for _, ip := range r.IPs {
		if ip.Interface == nil || *ip.Interface != index {
			continue
		}
		p, ok := prefix(ip.Address)
		if !ok {
			return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult has address %s, which is none", ip.Address.String()), "")
		}
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		out.IPs = append(out.IPs, wire.IP{Address: p, Gateway: gw.Unmap()})
	}
	return out, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}
