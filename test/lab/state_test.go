package lab

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOnlyTheRecordedProcessIsSignalled: a number that means another process now, or is of an earlier boot of the machine, is nobody's.
func TestOnlyTheRecordedProcessIsSignalled(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	earlier, otherBoot := p, p
	earlier.Start--
	otherBoot.Boot = "another"
	for _, other := range []process{earlier, otherBoot, {}} {
		if other.alive() {
			t.Errorf("%+v counts as alive", other)
		}
		if err := other.signal(unix.SIGKILL); err != nil {
			t.Errorf("signal to %+v: %v", other, err)
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("the process was signalled by another's record: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if !p.alive() {
		t.Error("the process does not count as alive")
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := p.signal(unix.SIGKILL); err != nil {
		t.Errorf("signal to a process that has ended: %v", err)
	}
}

func TestConfigReportsEveryError(t *testing.T) {
	err := Config{Name: "No Name", Nodes: 99, IPFamily: "ipx", CNI: "flannel", OVN: "vms", Containerd: "1.6"}.Validate()
	if err == nil {
		t.Fatal("a configuration that is all wrong is accepted")
	}
	if joined, ok := err.(interface{ Unwrap() []error }); !ok || len(joined.Unwrap()) != 6 {
		t.Errorf("Validate = %v, want six errors", err)
	}
	if err := (Config{}).Defaults().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestRefusedLabLeavesNothing(t *testing.T) {
	base := filepath.Join(t.TempDir(), "labs")
	t.Setenv(dirVariable, base)
	for _, c := range []Config{{Nodes: maxNodes + 1}, {IPFamily: "ipv5"}, {Name: "../other"}} {
		if _, err := Up(t.Context(), c); err == nil {
			t.Errorf("a lab like %+v was made, want an error", c)
		}
	}
	if _, err := Dir("../other"); err == nil {
		t.Error("a lab is looked for outside the directory for labs")
	}
	if _, err := os.Stat(base); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("look for %s: %v: want nothing there", base, err)
	}
}

func TestHostAddresses(t *testing.T) {
	if got := join(hostAddresses(DualStack, mgmtNet, 11)); got != "172.30.0.11/24,fd00:172:30::11/64" {
		t.Errorf("dual: %s", got)
	}
	if got := join(hostAddresses(IPv6, tunNet, 200)); got != "fd00:172:30:1::200/64" {
		t.Errorf("ipv6: %s", got)
	}
}

// TestLabOfADemoIsNobodyElses: what removes a lab in the end owns it; others neither use it meanwhile nor find it afterwards as one that stays.
func TestLabOfADemoIsNobodyElses(t *testing.T) {
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	other, err := identify(sleep.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]*machine{hubName: {}}
	s := &state{Name: "default", Machines: there, Owner: other}
	if err := s.take(Config{}); err == nil || s.Owner != other {
		t.Errorf("a lab of another process was taken from it: %v, owner %+v", err, s.Owner)
	}
	_ = sleep.Process.Kill()
	_ = sleep.Wait()
	for name, tt := range map[string]struct {
		s    state
		c    Config
		want int
	}{
		"a new one of a demo":             {state{}, Config{Own: true}, os.Getpid()},
		"a new one that stays":            {state{}, Config{}, 0},
		"one that stays, used by a demo":  {state{Machines: there}, Config{Own: true}, 0},
		"a dead demo's, used by the next": {state{Machines: there, Owner: other}, Config{Own: true}, os.Getpid()},
		"a dead demo's, and now it stays": {state{Machines: there, Owner: other}, Config{}, 0},
	} {
		if err := tt.s.take(tt.c); err != nil || tt.s.Owner.Pid != tt.want {
			t.Errorf("%s: %v, owner %d: want owner %d", name, err, tt.s.Owner.Pid, tt.want)
		}
	}
}

// TestEndedMachineSaysWhy: whichever of the machines that something needs has ended, its log is in the error.
func TestEndedMachineSaysWhy(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{dir: t.TempDir(), state: &state{Machines: map[string]*machine{hubName: {}, "node1": {Process: self}}}}
	for name, text := range map[string]string{hubName: "Error: no room\n", "node1": "all is well\n"} {
		if err := errors.Join(os.MkdirAll(l.path(logsDir, name), 0o700), os.WriteFile(l.path(logsDir, name, initLog), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	const want = "no such file; hub has ended, its log ends with: Error: no room"
	if err := l.withLogs(errors.New("no such file"), hubName, "node1"); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := l.withLogs(nil, hubName); err != nil {
		t.Errorf("nothing failed, and the error is %v", err)
	}
}
