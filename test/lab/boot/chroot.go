package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// leaveChroot makes the root directory of the calling thread, which is a mount point, that of its mount namespace too. Whoever enters a mount namespace gets its root
// directory: where the lab is run in a chroot that would be the one around the chroot, for a command in a pod as well.
func leaveChroot() error {
	here, before, err := openRoot()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(here) }()
	// A thread that shares its root directory with others may not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("part with the other threads' root directory: %w", err)
	}
	ns, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the mount namespace: %w", err)
	}
	err = unix.Setns(ns, unix.CLONE_NEWNS)
	if err := errors.Join(err, unix.Close(ns)); err != nil {
		return fmt.Errorf("enter the mount namespace anew: %w", err)
	}
	top, after, err := openRoot()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(top) }()
	if before == after {
		return nil // no chroot
	}
	// The old root lies over the new one after this, until it is unmounted: pivot_root(2), "pivot_root(".", ".")".
	return errors.Join(
		os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")),
		os.NewSyscallError("fchdir", unix.Fchdir(here)),
		os.NewSyscallError("pivot_root", unix.PivotRoot(".", ".")),
		os.NewSyscallError("umount", unix.Unmount(".", unix.MNT_DETACH)),
		os.NewSyscallError("chdir", unix.Chdir("/")),
	)
}

// rootID tells root directories apart.
type rootID struct {
	major, minor uint32
	inode, mount uint64
}

func openRoot() (fd int, id rootID, err error) {
	fd, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, id, fmt.Errorf("open the root directory: %w", err)
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
		return 0, id, errors.Join(fmt.Errorf("look at the root directory: %w", err), unix.Close(fd))
	}
	return fd, rootID{st.Dev_major, st.Dev_minor, st.Ino, st.Mnt_id}, nil
}
