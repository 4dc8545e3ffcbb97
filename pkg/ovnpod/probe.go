package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/godwit-cni/godwit/pkg/ovs"
)

// Daemons that can be probed.
const (
	ProbeNB         = "nb"
	ProbeSB         = "sb"
	ProbeNorthd     = "northd"
	ProbeSwitchDB   = "ovsdb"
	ProbeSwitch     = "vswitchd"
	ProbeController = "controller"
	ProbeGate       = "gate"
	// ProbeMembers is what looks after the members of both databases.
	ProbeMembers = "members"
	// ProbeUninstall is no daemon: whether the node is clean.
	ProbeUninstall = "uninstall"
)

// Probes are their names.
func Probes() []string {
	return []string{ProbeNB, ProbeSB, ProbeNorthd, ProbeSwitchDB, ProbeSwitch, ProbeController, ProbeGate, ProbeMembers, ProbeUninstall}
}

// Alive returns nil when the daemon answers, or has no socket yet: what it needs is being prepared. One that ended has taken its container along.
func (c *Config) Alive(ctx context.Context, daemon string) error {
	if daemon == ProbeGate || daemon == ProbeMembers || daemon == ProbeUninstall {
		return nil // what is wrong with it, another start does not mend
	}
	err := c.answers(ctx, daemon)
	if errors.Is(err, ovs.ErrNoSocket) {
		return nil
	}
	return err
}

func (c *Config) answers(ctx context.Context, daemon string) error {
	_, err := c.ask(ctx, daemon, "version")
	return err
}

// Ready returns nil when the daemon does what it is there for: a database is a member of a cluster that has a leader, ovn-controller is connected to SB.
// What looks after the members is ready when neither database has more than it should: the pod's readiness is what the next one's end waits for.
func (c *Config) Ready(ctx context.Context, daemon string) error {
	switch daemon {
	case ProbeNB, ProbeSB:
		d := c.named(daemon)
		s, err := d.status(ctx)
		switch {
		case err != nil:
			return err
		case s.Failed:
			return fmt.Errorf("%s could not be written to the disk: is there room in %s of this node?", d.Name, c.StateDir)
		case !s.Member:
			return fmt.Errorf("%s has not joined its cluster yet: do most of its members run? If none does, their copies are on other nodes with the label: cordon this node and delete this pod", d.Name)
		case !s.Led:
			return fmt.Errorf("the cluster of %s has no leader: are most of its members there?", d.Name)
		}
		return d.roomy()
	case ProbeGate:
		return c.opened(ctx)
	case ProbeMembers:
		return errors.Join(c.named(ProbeNB).fitting(), c.named(ProbeSB).fitting())
	case ProbeUninstall:
		return clean()
	case ProbeController:
		said, err := c.ask(ctx, daemon, "connection-status")
		if err == nil && strings.TrimSpace(said) != "connected" {
			err = fmt.Errorf("ovn-controller is %s to SB: has godwit-agent configured it, and can this node reach --sb-remote?", strings.TrimSpace(said))
		}
		return err
	}
	return c.answers(ctx, daemon)
}

// ask puts a question to a daemon.
func (c *Config) ask(ctx context.Context, daemon, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said, err := ovs.Ask(ctx, c.socket(daemon), command)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", daemon, err)
	}
	return said, nil
}

// socket is the pattern of a daemon's control socket.
func (c *Config) socket(daemon string) string {
	return map[string]string{
		ProbeNB: filepath.Join(c.RunDir, "ovnnb_db.ctl"), ProbeSB: filepath.Join(c.RunDir, "ovnsb_db.ctl"), ProbeNorthd: filepath.Join(c.RunDir, "ovn-northd.ctl"),
		ProbeSwitchDB: filepath.Join(c.SwitchRunDir, "ovsdb-server.*.ctl"), ProbeSwitch: filepath.Join(c.SwitchRunDir, "ovs-vswitchd.*.ctl"),
		ProbeController: filepath.Join(c.RunDir, "ovn-controller.*.ctl"),
	}[daemon]
}
