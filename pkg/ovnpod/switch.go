package ovnpod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/netdev"
	"github.com/godwit-cni/godwit/pkg/ovs"
)

// forwardsNice is ovs-vswitchd's where it forwards every packet itself: a daemon that waits for a processor is a network that stands still.
const forwardsNice = -15

// askTimeout bounds one question to a daemon of this node.
const askTimeout = 5 * time.Second

// countsProcessors is for how long a machine must be up. Before 3.2 Open vSwitch finds no processor earlier (commit b354cee2e there): ovs-vswitchd then gives the kernel's
// datapath nobody to ask, and no packet passes for as long as it runs.
const countsProcessors = 10*time.Second + 500*time.Millisecond

// Switch is the local Open vSwitch.
type Switch struct {
	Config Config
	Log    *slog.Logger
}

func (s Switch) file() string   { return filepath.Join(s.Config.SwitchDir, "conf.db") }
func (s Switch) socket() string { return filepath.Join(s.Config.SwitchRunDir, "db.sock") }

// Database makes the local database unless it is there, converts it to this image's schema, and returns the command of its server.
func (s Switch) Database(ctx context.Context) ([]string, error) {
	for _, dir := range []string{s.Config.SwitchDir, s.Config.SwitchRunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a directory for Open vSwitch: %w", err)
		}
	}
	if s.serves(ctx) == nil {
		return nil, fmt.Errorf("another ovsdb-server of this node serves %s: stop the distribution's Open vSwitch, or leave yamls/ovn.yaml out and go on using it", s.socket())
	}
	schema := filepath.Join(s.Config.SwitchSchemaDir, "vswitch.ovsschema")
	there, err := exists(s.file())
	if err != nil {
		return nil, err
	}
	if there {
		err = s.convert(ctx, schema)
	} else {
		err = s.create(ctx, schema)
	}
	if err != nil {
		return nil, err
	}
	argv := []string{"ovsdb-server", "--remote=punix:" + s.socket(), "--pidfile", "-vconsole:info", "-vsyslog:off", "-vfile:off"}
	return append(append(argv, s.Config.Extra...), s.file()), s.clear("ovsdb-server")
}

func (s Switch) create(ctx context.Context, schema string) error {
	tmp := s.file() + ".new" // a file that was cut short when the machine died would never be completed
	if err := remove(tmp); err != nil {
		return err
	}
	s.Log.Info("making the local database", "file", s.file())
	if _, err := databaseTool(ctx, "create", tmp, schema); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.file()); err != nil {
		return fmt.Errorf("put the local database in its place: %w", err)
	}
	return nil
}

func (s Switch) convert(ctx context.Context, schema string) error {
	needs, err := databaseTool(ctx, "needs-conversion", s.file(), schema)
	if err != nil || needs != "yes" {
		return err
	}
	s.Log.Info("converting the local database to this version's schema", "file", s.file())
	_, err = databaseTool(ctx, "convert", s.file(), schema)
	return err
}

// clear removes the control sockets that killed processes of a daemon have left: their names have the process's number.
func (s Switch) clear(daemon string) error {
	return clearControl(s.Config.SwitchRunDir, daemon)
}

func clearControl(dir, daemon string) error {
	left, err := filepath.Glob(filepath.Join(dir, daemon+".*.ctl"))
	if err != nil {
		return fmt.Errorf("look for sockets of earlier runs: %w", err)
	}
	for _, f := range left {
		if err := remove(f); err != nil {
			return err
		}
	}
	return nil
}

// serves returns nil when something serves the local database.
func (s Switch) serves(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var names []string
	return ovs.Call(ctx, s.socket(), "list_dbs", []string{}, &names)
}

// Daemon waits for the local database, makes the row in it that everything else hangs on, and returns the command of ovs-vswitchd.
func (s Switch) Daemon(ctx context.Context) (argv []string, nice int, err error) {
	if err := s.await(ctx, s.serves); err != nil {
		return nil, 0, err
	}
	if err := s.initialize(ctx); err != nil {
		return nil, 0, err
	}
	if err := awaitProcessors(ctx); err != nil {
		return nil, 0, err
	}
	nice = s.Config.Nice
	kernel, err := netdev.HasGenl("ovs_datapath") // asking for it loads the module where there is one
	switch {
	case err != nil:
		s.Log.Warn("it is not known whether the kernel has a datapath", "error", err)
	case !kernel:
		s.Log.Info("the kernel has no module openvswitch: packets are forwarded by ovs-vswitchd itself")
		nice = min(nice, forwardsNice)
	}
	argv = []string{"ovs-vswitchd", "--pidfile", "-vconsole:info", "-vsyslog:off", "-vfile:off"}
	return append(append(argv, s.Config.Extra...), "unix:"+s.socket()), nice, s.clear("ovs-vswitchd")
}

// awaitProcessors waits until ovs-vswitchd counts the machine's processors right.
func awaitProcessors(ctx context.Context) error {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
		return fmt.Errorf("read how long the machine has been up: %w", err)
	}
	return pause(ctx, countsProcessors-time.Duration(up.Nano()))
}

// Controller waits for the local database, and for its configuration there, which is godwit-agent's, and returns the command of ovn-controller, which ends without it.
func (s Switch) Controller(ctx context.Context) ([]string, error) {
	if err := os.MkdirAll(s.Config.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for ovn-controller: %w", err)
	}
	if err := s.await(ctx, s.configured); err != nil {
		return nil, err
	}
	argv := []string{"ovn-controller", "--pidfile", "-vconsole:info", "-vsyslog:off", "-vfile:off"}
	return append(append(argv, s.Config.Extra...), "unix:"+s.socket()), clearControl(s.Config.RunDir, "ovn-controller")
}

// configured returns nil when the agent has told ovn-controller who it is and where SB is.
func (s Switch) configured(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var results []struct {
		Rows []struct {
			IDs []json.RawMessage `json:"external_ids"` // "map", and pairs
		} `json:"rows"`
	}
	query := map[string]any{"op": "select", "table": "Open_vSwitch", "where": []any{}, "columns": []string{"external_ids"}}
	if err := ovs.Call(ctx, s.socket(), "transact", []any{"Open_vSwitch", query}, &results); err != nil {
		return err
	}
	for _, key := range []string{"system-id", "ovn-remote", "ovn-encap-ip"} {
		if len(results) == 0 || len(results[0].Rows) == 0 || !hasKey(results[0].Rows[0].IDs, key) {
			return fmt.Errorf("external_ids:%s of Open_vSwitch is not set yet: is godwit-agent running on this node?", key)
		}
	}
	return nil
}

// hasKey looks for a key in a map as OVSDB writes it.
func hasKey(column []json.RawMessage, key string) bool {
	_, ok := mapColumn(column)[key]
	return ok
}

// mapColumn reads a map of strings as OVSDB writes it: RFC 7047, 5.1. It is nil for anything else.
func mapColumn(column []json.RawMessage) map[string]string {
	if len(column) != 2 {
		return nil
	}
	var pairs [][2]string
	if json.Unmarshal(column[1], &pairs) != nil {
		return nil
	}
	out := map[string]string{}
	for _, p := range pairs {
		out[p[0]] = p[1]
	}
	return out
}

// await returns when check has nothing to say any more.
func (s Switch) await(ctx context.Context, check func(context.Context) error) error {
	for told := ""; ; {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if told != err.Error() {
			told = err.Error()
			s.Log.Info("waiting", "socket", s.socket(), "reason", err)
		}
		if err := pause(ctx, retryInterval/10); err != nil {
			return fmt.Errorf("wait for the local database: %w", err)
		}
	}
}

// initialize is what ovs-vsctl init does: a wait for no row, and the first row. It fails where there is one already.
func (s Switch) initialize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	const table = "Open_vSwitch"
	none := map[string]any{
		"op": "wait", "table": table, "where": []any{}, "columns": []string{"cur_cfg"}, "until": "==", "rows": []any{}, "timeout": 0,
	}
	var results []struct {
		Error   string `json:"error"`
		Details string `json:"details"`
	}
	err := ovs.Call(ctx, s.socket(), "transact", []any{table, none, map[string]any{"op": "insert", "table": table, "row": map[string]any{}}}, &results)
	for _, r := range results {
		if r.Error != "" && r.Error != "timed out" { // the wait's: there is a row
			err = errors.Join(err, fmt.Errorf("%s: %s", r.Error, r.Details))
		}
	}
	if err != nil {
		return fmt.Errorf("make the first row of database %s: %w", table, err)
	}
	return nil
}
