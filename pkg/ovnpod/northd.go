package ovnpod

import (
	"fmt"
	"os"
	"path/filepath"
)

// Northd returns the command of ovn-northd. Of several, that which has the lock in SB works; it is the databases' leaders that they all talk to.
func (c *Config) Northd() ([]string, error) {
	for _, kind := range []string{"nb", "sb"} {
		if _, err := c.Database(kind); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for ovn-northd: %w", err)
	}
	argv := []string{
		"ovn-northd", "--ovnnb-db=" + c.NBRemote, "--ovnsb-db=" + c.SBRemote, "--unixctl=" + filepath.Join(c.RunDir, "ovn-northd.ctl"),
		"-vconsole:info", "-vsyslog:off", "-vfile:off",
	}
	return append(argv, c.Extra...), nil
}
