package ovnpod

import (
	"fmt"
	"os"
	"path/filepath"
)

// Northd returns the command of ovn-northd. Of several, that which has the lock in SB works; it is the databases' leaders that they all talk to.
func (c *Config) Northd() ([]string, error) {
	nb, err := c.Database(ProbeNB)
	if err != nil {
		return nil, err
	}
	sb, err := c.Database(ProbeSB)
	if err != nil {
		return nil, err
	}
	if nb.Protocol != sb.Protocol {
		return nil, fmt.Errorf("--nb-remote is by %s: and --sb-remote by %s: write ssl: in both, or tcp:", nb.Protocol, sb.Protocol)
	}
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for ovn-northd: %w", err)
	}
	southbound, tls := c.SBRemote, []string(nil)
	if sb.secure() {
		if _, err := c.gate(sb); err != nil {
			return nil, err
		}
		southbound, tls = c.SBGate, tlsArgs(c.AdminTLS)
	}
	argv := []string{
		"ovn-northd", "--ovnnb-db=" + c.NBRemote, "--ovnsb-db=" + southbound, "--unixctl=" + filepath.Join(c.RunDir, "ovn-northd.ctl"),
		"-vconsole:info", "-vsyslog:off", "-vfile:off",
	}
	return append(append(argv, tls...), c.Extra...), nil
}
