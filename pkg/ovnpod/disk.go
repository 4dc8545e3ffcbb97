package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-cni/godwit/pkg/ovs"
)

// leastRoom is what a disk must have for a database however small it is: one write may be as large as that.
const leastRoom = 1 << 20

// unknownCluster is what a server says of a database that it serves no more: raft.c of Open vSwitch.
const unknownCluster = "unknown cluster"

// room says how many bytes are free on the disk of the database's file, and how many there must be: to compact a database is to write it anew.
func (d Database) room() (free, need uint64, err error) {
	size := uint64(0) // of one that is still to come
	info, err := os.Stat(d.File)
	if err == nil {
		size = uint64(info.Size())
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, fmt.Errorf("find the size of a database: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(d.File), &disk); err != nil {
		return 0, 0, fmt.Errorf("find how much room there is in %s: %w", filepath.Dir(d.File), err)
	}
	return disk.Bavail * uint64(disk.Bsize), max(size, leastRoom), nil
}

// roomy is an error where a copy of the database would not fit on its disk.
func (d Database) roomy() error {
	free, need, err := d.room()
	if err == nil && free < need {
		err = fmt.Errorf("its disk has not the %d MiB that a copy of %s takes: make room in %s of this node", (need+1<<20-1)>>20, d.Name, filepath.Dir(d.File))
	}
	return err
}

// revive ends a server that has given its database up, since it could not write to its disk: the container starts it again, and it is a member as before. Without room it would fail once more, and is left
// alone, unless it led: its clients stay with it, and ovn-northd and the controllers would wait for its answers for ever.
func (w *Watcher) revive(ctx context.Context, s Status, why error) error {
	if !s.Failed && !strings.Contains(why.Error(), unknownCluster) {
		return nil
	}
	if err := w.Database.roomy(); err != nil && !s.Pretends && !w.last.Leader {
		return err
	}
	return w.end(ctx, "it has given its database up")
}

// end ends the server: its container starts it again, as what Prepare makes of its file.
func (w *Watcher) end(ctx context.Context, why string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	w.Log.Warn("ending the server, for it to start again", "db", w.Database.Name, "reason", why)
	var said string
	if err := ovs.Call(ctx, w.Database.Control, "exit", []string{}, &said); err != nil {
		return fmt.Errorf("end the server of %s: %w", w.Database.Name, err)
	}
	w.last, w.recorded = Status{}, time.Time{}
	return nil
}

// whole has the database's file written anew when there is room after there was none. A follower that cannot write an entry of the log keeps it in memory, tells the leader at the next attempt that it has it, and
// writes those that come later (raft_write_entry of Open vSwitch): it works, and its file has a gap, for which another start of the server fails. A new file has everything.
func (w *Watcher) whole(ctx context.Context) error {
	if err := w.Database.roomy(); err != nil {
		w.tight = true
		return err
	}
	if !w.tight {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, convertTimeout)
	defer cancel()
	w.Log.Info("writing the database's file anew: its disk was full, and has room again", "db", w.Database.Name, "file", w.Database.File)
	var said string
	if err := ovs.Call(ctx, w.Database.Control, "ovsdb-server/compact", []string{w.Database.Name}, &said); err != nil {
		return fmt.Errorf("write the file of %s anew: %w", w.Database.Name, err)
	}
	w.tight = false
	return nil
}

// gaps are what ovsdb-tool says of a file that lacks entries between others, or at the end some that were committed, and of one whose server has left the cluster (cluster/leave), for good.
var gaps = []string{"skips past expected index", "advances commit index to", "shows that the server left the cluster"}

// gap says what a member's file lacks, empty for one that a server can start with. Another fault of it is the server's to tell: a record that was cut short when the machine died is none.
func (d Database) gap(ctx context.Context) string {
	said, err := databaseTool(ctx, "check-cluster", d.File)
	if err != nil {
		said = err.Error()
	}
	if mentions(said, gaps) {
		return said
	}
	return ""
}

// unreadable is what ovsdb-tool says of a file that has no header: it was cut short when it was made, on a full disk or as the machine died, or was overwritten.
var unreadable = []string{"cannot identify file type", "unexpected file format", "(End of file)", "have SHA-1 hash"}

func mentions(said string, texts []string) bool {
	return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(said, text) })
}
