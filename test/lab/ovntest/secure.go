package ovntest

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/test/lab/netns"
)

// CentralAddress is the central's on the hosts' underlay, once Secure has been called.
const CentralAddress = "172.30.1.1"

// SecureSB is where nodes reach the southbound database by TLS, with the role of an ovn-controller.
const SecureSB = "ssl:" + CentralAddress + ":6642"

// southboundListeners lets the database itself say where its server listens, and by which certificates, as ovn-ctl does. It says nothing before Secure.
func southboundListeners() []string {
	return []string{
		"--remote=db:OVN_Southbound,SB_Global,connections", "--private-key=db:OVN_Southbound,SSL,private_key",
		"--certificate=db:OVN_Southbound,SSL,certificate", "--ca-cert=db:OVN_Southbound,SSL,ca_cert",
	}
}

// Secure lets the southbound database listen for nodes on SecureSB: mutual TLS with the certificates in dir (ca.crt, tls.crt, tls.key), and OVN's RBAC.
func (c *OVNCentral) Secure(t testing.TB, dir string) {
	t.Helper()
	err := c.Do(func() error {
		link, err := netlink.LinkByName(wire)
		if err != nil {
			return err
		}
		if err := checksumOff(wire); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(CentralAddress + "/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
	if err != nil {
		t.Fatalf("address the central: %v", err)
	}
	c.Southbound(t, "set-ssl", filepath.Join(dir, pki.KeyFile), filepath.Join(dir, pki.CertFile), filepath.Join(dir, pki.CAFile))
	c.Southbound(t, "set-connection", "role=ovn-controller", "pssl:6642:"+CentralAddress)
}

// Do runs f in the central's network namespace, on a thread of its own.
func (c *OVNCentral) Do(f func() error) error { return netns.Do(c.ns.Path(), f) }

// ConfigureSecureChassis is ConfigureChassis by TLS, with the certificates in dir.
func (h *OVSHost) ConfigureSecureChassis(t testing.TB, c *OVNCentral, dir string) {
	t.Helper()
	h.vsctl(t, c, "set-ssl", filepath.Join(dir, pki.KeyFile), filepath.Join(dir, pki.CertFile), filepath.Join(dir, pki.CAFile))
	h.configure(t, c, SecureSB)
}

// Tool is a control program of OVN, run on the host with certificates in dir against a remote: what an intruder on the node can do. It returns what the program says, and how it ended.
func (h *OVSHost) Tool(t testing.TB, dir string, command ...string) (string, error) {
	t.Helper()
	var out []byte
	err := h.Do(func() (err error) {
		args := append([]string{
			"--timeout=10", "--private-key=" + filepath.Join(dir, pki.KeyFile), "--certificate=" + filepath.Join(dir, pki.CertFile), "--ca-cert=" + filepath.Join(dir, pki.CAFile),
		}, command[1:]...)
		out, err = h.root.Command(t.Context(), command[0], args...).CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%v: %w: %s", command, err, out)
	}
	return string(out), err
}

// AddPort plugs an internal port of the integration bridge, which carries the logical port of that name.
func (h *OVSHost) AddPort(t testing.TB, c *OVNCentral, name, logical string) {
	t.Helper()
	h.vsctl(t, c, "--no-wait", "--may-exist", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "fail-mode=secure",
		"--", "add-port", "br-int", name, "--", "set", "interface", name, "type=internal", "external_ids:iface-id="+logical)
}
