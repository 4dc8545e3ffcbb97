package ovnpod

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// toolTimeout bounds one run of ovsdb-tool: converting a database writes all of it.
const toolTimeout = 2 * time.Minute

// databaseTool runs ovsdb-tool and returns what it said, without the newline.
func databaseTool(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ovsdb-tool", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ovsdb-tool %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// Become makes this process another program, with a niceness. It returns only with an error. The kernel's niceness is a thread's: the one that executes the program
// is what is left of the process.
func Become(log *slog.Logger, nice int, argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("find the daemon: %w: is this the OVN image?", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		log.Warn("the daemon gets no preference: the container lacks CAP_SYS_NICE", "nice", nice, "error", err)
	}
	log.Info("becoming the daemon", "command", strings.Join(argv, " "))
	if err := unix.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("execute %s: %w", path, err)
	}
	return nil
}
