package suite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childDir, in the environment, makes this program one whose tests are under way, with what they have made in that directory.
const childDir = "GODWIT_SUITE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		underWay(dir)
	}
	os.Exit(m.Run())
}

// underWay makes two files and a process in a group of its own, says so, and waits to be told to end.
func underWay(dir string) {
	for _, name := range []string{"one", "two"} {
		file := filepath.Join(dir, name)
		made.add(func() {
			time.Sleep(200 * time.Millisecond) // nobody exits before the other is done
			_ = os.Remove(file)
		})
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			panic(err)
		}
	}
	sleep := exec.CommandContext(context.Background(), "sleep", "600")
	sleep.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := sleep.Start(); err != nil {
		panic(err)
	}
	fmt.Println(sleep.Process.Pid)
	_ = sleep.Wait()
	time.Sleep(time.Minute)
	panic("not told to end")
}

// Ctrl-C leaves nothing that tests have made, whatever was under way.
func TestInterruptRemovesAll(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			tests := exec.CommandContext(t.Context(), self)
			tests.Env, tests.Stderr = append(os.Environ(), childDir+"="+dir), t.Output()
			out, err := tests.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := tests.Start(); err != nil {
				t.Fatal(err)
			}
			said, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if err := tests.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := tests.Wait(); !errors.As(err, &exit) || exit.ExitCode() != interrupted {
				t.Errorf("ended with %v, want status %d", err, interrupted)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) > 0 {
				t.Errorf("there are %v (%v), want nothing", left, err)
			}
			if _, err := os.Stat("/proc/" + strings.TrimSpace(said)); err == nil {
				t.Errorf("process %s runs still", strings.TrimSpace(said))
			}
		})
	}
}

// A test that has ended leaves nothing to remove.
func TestRemoveOnce(t *testing.T) {
	var i inventory
	n := 0
	done := i.add(func() { n++ })
	done()
	i.clear()
	if n != 1 || len(i.removes) != 0 {
		t.Errorf("removed %d times, %d are left on the list", n, len(i.removes))
	}
}
