package ovs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// ErrNoSocket says that a daemon has no control socket.
var ErrNoSocket = errors.New("it does not run, or its directory is not mounted")

// Ask puts a question to a daemon of OVN or Open vSwitch by its control socket, as ovs-appctl(8) does. The socket's name has the daemon's process number, so a pattern
// names it; one that was killed has left its own, and each is asked until one answers. Without any the error wraps ErrNoSocket.
func Ask(ctx context.Context, pattern, command string, arguments ...string) (said string, err error) {
	sockets, err := filepath.Glob(pattern)
	if err != nil || len(sockets) == 0 {
		return "", fmt.Errorf("there is no control socket %s: %w", pattern, ErrNoSocket)
	}
	if arguments == nil {
		arguments = []string{}
	}
	var errs []error
	for _, s := range sockets {
		var said string
		if err := Call(ctx, s, command, arguments, &said); err != nil {
			errs = append(errs, fmt.Errorf("%s at %s: %w", strings.Join(append([]string{command}, arguments...), " "), s, err))
			continue
		}
		return said, nil
	}
	return "", errors.Join(errs...)
}
