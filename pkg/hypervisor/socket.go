package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// dial connects to a socket in the launcher's volume. The launcher writes there and is not trusted: a link that it makes instead of a socket is not followed (openat2, Linux 5.6), or it would lead root of
// the node to sockets of the node. Connected is by the file that was looked at, whose path is longer than an address of a socket may be.
func dial(ctx context.Context, l Launcher, socket string) (net.Conn, error) {
	if l.UID == "" || strings.ContainsRune(l.UID, filepath.Separator) {
		return nil, fmt.Errorf("pod UID %q: it is none", l.UID)
	}
	path := filepath.Join(l.UID, "volumes", "kubernetes.io~empty-dir", volume, socket)
	pods, err := os.OpenFile(l.Pods, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the kubelet's directory of pods: %w: --pods-dir names it", err)
	}
	defer pods.Close() //nolint:errcheck // nothing is written to it
	fd, err := unix.Openat2(int(pods.Fd()), path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("%w: there is no %s", ErrNone, filepath.Join(l.Pods, path))
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(l.Pods, path), err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close() //nolint:errcheck // likewise
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s: it is no socket: the launcher has put something else there", filepath.Join(l.Pods, path))
	}
	conn, err := (&net.Dialer{Timeout: setupTimeout}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", filepath.Join(l.Pods, path), err)
	}
	return conn, nil
}
