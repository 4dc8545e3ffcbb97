// Package cache keeps what the lab downloads and builds: directories that are made once, under a key of what they are made from, and never
// changed afterwards.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Environment variable that names the cache's parent directory; XDG_CACHE_HOME or ~/.cache where it is empty.
const dirVariable = "GODWIT_CACHE"

// minFree is the space in bytes that the largest entry takes.
const minFree = 600 << 20

// lockRetry is how often a busy lock is tried again. Only another process that fills the same entry holds it, for seconds or minutes.
const lockRetry = 200 * time.Millisecond

// Dir is the directory below which all entries are. It need not exist.
func Dir() (string, error) {
	if dir := os.Getenv(dirVariable); dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("resolve %s=%s: %w", dirVariable, dir, err)
		}
		return filepath.Join(abs, "godwit"), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a directory for downloads: %w: set %s to one", err, dirVariable)
	}
	return filepath.Join(dir, "godwit"), nil
}

// Entry returns the directory kind/key, which fill makes if it does not exist. fill gets an empty directory beside the final one; it takes its
// place by a rename when fill returns nil, so an entry is either whole or absent, whatever is killed when. Processes that want the same entry
// wait for one another.
func Entry(ctx context.Context, kind, key string, fill func(ctx context.Context, dir string) error) (string, error) {
	base, err := Dir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(base, kind)
	final := filepath.Join(parent, key)
	if exists(final) {
		return final, nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("make the cache directory: %w: set %s to a directory that can be written", err, dirVariable)
	}
	unlock, err := lock(ctx, final+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(final) {
		return final, nil
	}
	tmp := final + ".part"
	// Left by a process that was killed: the lock says that nobody is filling it now.
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("clear an unfinished cache entry: %w", err)
	}
	if err := room(parent); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", fmt.Errorf("make a cache entry: %w", err)
	}
	if err := fill(ctx, tmp); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", fmt.Errorf("finish a cache entry: %w", err)
	}
	return final, nil
}

// Scratch returns the directory kind/key, which is kept for the next time but may hold anything, and whose use is exclusive until unlock is called.
func Scratch(ctx context.Context, kind, key string) (dir string, unlock func(), err error) {
	base, err := Dir()
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(base, kind, key)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("make the cache directory: %w: set %s to a directory that can be written", err, dirVariable)
	}
	unlock, err = lock(ctx, dir+".lock")
	return dir, unlock, err
}

// room says whether the file system of dir has space for an entry, before minutes are spent on one.
func room(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < minFree { //nolint:gosec // no file system has 2^63 blocks
		return fmt.Errorf("the file system of %s has %d MB free: want %d: set %s to a directory with more", dir, free>>20, minFree>>20, dirVariable)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// lock takes an exclusive lock on the file at path, which it makes if needed and leaves in place: removing it would let two processes hold
// "the" lock on two files.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open cache lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for the process that holds %s: %w", path, ctx.Err()), f.Close())
		case <-time.After(lockRetry):
		}
	}
}
