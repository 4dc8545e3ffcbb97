package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk is a directory on a disk of its own that can be filled.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=755"); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no room on a disk; what it returns makes room again.
func fill(t *testing.T, dir string) (room func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if closed := f.Close(); closed != nil {
		t.Fatal(closed)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskFull: the disk of a follower is full, and has room again, while its cluster writes. The member starts again with everything: with its file, if that was written anew meanwhile, else it joins anew.
func TestDiskFull(t *testing.T) {
	t.Run("LookedAfter", func(t *testing.T) {
		w, first, third, room := newFullDisk(t, false)
		w.until(func() error { return third.mentions("make room in", revived) })
		room()
		w.writes(first)
		w.until(func() error { return third.mentions("writing the database's file anew", revived) })
		w.until(func() error { return third.whole() })
		if w.startsAgain(first, third) {
			t.Error("it has joined anew, want it to go on with its file")
		}
	})
	t.Run("NobodyLooks", func(t *testing.T) {
		w, first, third, room := newFullDisk(t, true)
		room()
		w.writes(first)
		gap := false
		w.until(func() error {
			gap = third.whole() != nil
			if s, err := third.database.status(t.Context()); err == nil && s.Failed || gap {
				return nil // on a machine that is so slow that it led for a while, it has given up
			}
			return errors.New("the file has no gap")
		})
		if w.startsAgain(first, third) != gap {
			t.Errorf("it has joined anew: %t, want %t", !gap, gap)
		}
	})
}

// revived is what is logged of a member that led when its disk was full.
const revived = "it has given its database up"

// newFullDisk is a cluster of which the third member's disk is full. What it returns in the end makes room.
func newFullDisk(t *testing.T, unwatched bool) (w *world, first, third *run, room func()) {
	t.Helper()
	w = newWorld(t, 3)
	dir := smallDisk(t)
	first = w.start(0, 1, t.TempDir())
	w.settled(first, 1)
	w.settled(w.start(1, 2, t.TempDir()), 2)
	w.unwatched = unwatched
	third = w.start(2, 3, dir)
	w.settled(third, 3)
	room = fill(t, dir)
	w.writes(first)
	return w, first, third, room
}

// writes makes more rows than the last block of a full disk takes.
func (w *world) writes(r *run) {
	w.t.Helper()
	for range manyRows {
		w.settled(r, 3)
	}
}

const manyRows = 60

// until returns when check has nothing to say any more.
func (w *world) until(check func() error) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("after %s: %v", patience, err)
		}
	}
}

// mentions is an error unless one of the words was said of a member's cluster.
func (r *run) mentions(words ...string) error {
	said := r.said.String()
	if slices.ContainsFunc(words, func(word string) bool { return strings.Contains(said, word) }) {
		return nil
	}
	return fmt.Errorf("none of %q was said:\n%s", words, said)
}

// whole is an error where a member's file has a gap.
func (r *run) whole() error {
	if gap := r.database.gap(context.Background()); gap != "" {
		return errors.New(gap)
	}
	return nil
}

// startsAgain ends the third member and starts it on its disk: it has what the first has. It says whether it has joined anew.
func (w *world) startsAgain(first, third *run) (joined bool) {
	w.t.Helper()
	third.end()
	dir := filepath.Dir(third.database.File)
	w.unwatched = false
	again := w.start(2, 3, dir)
	w.settled(again, 3)
	want := w.rows(first)
	if len(want) < 2*manyRows {
		w.t.Errorf("the first member has %d rows, want %d at least", len(want), 2*manyRows)
	}
	w.until(func() error {
		if have := w.rows(again); !want.subsetOf(have) {
			return fmt.Errorf("the member has %d rows, want the %d of the first", len(have), len(want))
		}
		return nil
	})
	joined, err := exists(third.database.File + ".former")
	if err != nil {
		w.t.Error(err)
	}
	return joined
}

// TestFileThatCannotBeRead: a file that was cut short is put aside, and its member joins anew, when there is room; without other members the error says what to do.
func TestFileThatCannotBeRead(t *testing.T) {
	w := newWorld(t, 3)
	dir := smallDisk(t)
	first := w.start(0, 1, t.TempDir())
	w.settled(first, 1)
	w.settled(w.start(1, 2, t.TempDir()), 2)
	third := w.start(2, 3, dir)
	w.settled(third, 3)
	third.end()
	w.cutShort(third) // a record at the end: its server leaves that out
	third = w.start(2, 3, dir)
	w.settled(third, 3)
	if err := third.mentions("step=keep"); err != nil {
		t.Error(err)
	}
	for name, size := range map[string]int64{"nothing": 0, "half a header": 100} {
		third.end()
		if err := os.Truncate(third.database.File, size); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(3*retryInterval, fill(t, dir)) // it waits for room, and leaves no other file that was cut short
		t.Cleanup(func() { timer.Stop() })
		third = w.start(2, 3, dir)
		w.settled(third, 3)
		if err := third.mentions("the file cannot be read", "make room in"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// cutShort takes the last bytes of a member's file, as the machine's end may.
func (w *world) cutShort(r *run) {
	w.t.Helper()
	info, err := os.Stat(r.database.File)
	if err == nil {
		err = os.Truncate(r.database.File, info.Size()-3)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
