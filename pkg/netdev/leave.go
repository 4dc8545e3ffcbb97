package netdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Generic netlink of the kernel's module openvswitch: linux/openvswitch.h.
const (
	datapathFamily   = "ovs_datapath"
	datapathVersion  = 2
	datapathDelete   = 2 // OVS_DP_CMD_DEL
	datapathNameAttr = 1 // OVS_DP_ATTR_NAME
)

// kernelDatapath and kernelTunnel are links that ovs-vswitchd makes on the kernel's datapath, and leaves when it ends: the datapath with all that is in it, and the end of Geneve's tunnels.
const (
	kernelDatapath = "ovs-system"
	kernelTunnel   = "genev_sys_6081"
)

// datapathHeader is struct ovs_header: the datapath is meant by its name, not by the number of its link.
type datapathHeader struct{}

// Len implements nl.NetlinkRequestData.
func (datapathHeader) Len() int { return 4 }

// Serialize implements nl.NetlinkRequestData.
func (h datapathHeader) Serialize() []byte { return make([]byte, h.Len()) }

// RemoveDatapath removes what an ovs-vswitchd that has ended has left in the kernel: its datapath with all internal ports, and the link of the tunnels. Removing the absent succeeds, also in a kernel
// without the module.
func (h Host) RemoveDatapath() error {
	return h.do(func() error {
		family, err := netlink.GenlFamilyGet(datapathFamily)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look generic netlink family %s up: %w", datapathFamily, err)
		}
		request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
		request.AddData(&nl.Genlmsg{Command: datapathDelete, Version: datapathVersion})
		request.AddData(datapathHeader{})
		request.AddData(nl.NewRtAttr(datapathNameAttr, nl.ZeroTerminated(kernelDatapath)))
		if _, err := request.Execute(unix.NETLINK_GENERIC, 0); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete datapath %s: %w", kernelDatapath, err)
		}
		return deleteLink(kernelTunnel)
	})
}

// RemoveTables removes Godwit's tables of nftables, and needs no nft program for it. Removing the absent succeeds.
func (h Host) RemoveTables() error {
	return h.do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
		if err != nil {
			return fmt.Errorf("list nftables tables: %w", err)
		}
		for _, t := range tables {
			if t.Name == nftTable || t.Name == balanceTable {
				conn.DelTable(t)
			}
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("remove nftables tables inet %s and inet %s: %w", nftTable, balanceTable, err)
		}
		return nil
	})
}

// GiveBack undoes TakeOver when the bridge is gone: the link has its addresses and routes again, the kernel answers on it, and what the link can leave to hardware it does. The kernel's defaults are
// restored: TakeOver does not remember what else there was. A link that is gone needs nothing.
func (h Host) GiveBack(name string, held Holdings) error {
	return h.do(func() error {
		link, err := netlink.LinkByName(name)
		if isNoLink(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		for _, key := range []string{"net/ipv4/conf/" + name + "/arp_ignore", "net/ipv6/conf/" + name + "/disable_ipv6"} {
			if _, err := os.Stat(filepath.Join("/proc/sys", key)); errors.Is(err, os.ErrNotExist) {
				continue // a kernel without the family
			}
			if err := writeSysctl(key, "0"); err != nil {
				return err
			}
		}
		if err := txChecksumOn(name); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
		for _, a := range held.Addresses {
			if err := netlink.AddrReplace(link, address(a)); err != nil {
				return fmt.Errorf("add address %s to %s: %w", a, name, err)
			}
		}
		return addRoutes(link, held.Routes)
	})
}
