package compute

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/godwit-cni/godwit/pkg/hypervisor"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/guest/plumb"
	"github.com/godwit-cni/godwit/test/lab/guest/qmp"
)

const (
	qmpSocket     = "qmp.sock"
	consoleSocket = "console.sock"
	// startTimeout bounds QEMU's start, a tenth of a second on an idle machine.
	startTimeout = 2 * time.Minute
)

// offloads are switched off, or a userspace datapath gets packets without checksums, and larger than the network's MTU.
const offloads = "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"

// announce: it is QEMU that announces the guest after a migration, and not the guest as well.
const announce = "guest_announce=off"

// oddMemory is added to the guest's memory, in bytes. QEMU before 9.0 (commit 03bfc2188f there) loses track of what an emulated processor writes while its memory is
// copied, if the memory's size is a multiple of 64 pages: a busy guest arrives with old pages, and crashes or computes nonsense. Another size takes another path.
const oddMemory = 8 << 10

// kernelArguments make an emulated machine boot fast, keep its time over a migration, and have coarse timers (4 ms): Go's runtime asks for hundreds of interrupts a second
// otherwise, each of which costs an emulator dearly.
const kernelArguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable clocksource=tsc highres=off no5lvl"

// arguments are QEMU's. Source and target of a migration must have the same machine.
func arguments(c Config, d guest.Domain, ports []plumb.Port) []string {
	memory := cmp.Or(d.MemoryMiB, guest.DefaultMemoryMiB)
	args := []string{
		"-name", "guest=" + d.Name, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,usb=off", "-cpu", "max",
		// The code cache is memory that no request of the pod's speaks of; its default is an eighth of the machine's.
		"-accel", "tcg,tb-size=32", "-m", fmt.Sprintf("%dB", memory<<20+oddMemory), "-smp", "1",
		"-kernel", c.Kernel, "-initrd", c.Initramfs, "-append", strings.TrimSpace(kernelArguments + " hostname=" + cmp.Or(d.Hostname, "guest") + " " + d.Arguments),
		"-chardev", "socket,id=qmp,path=" + filepath.Join(c.Dir, qmpSocket), "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=console,path=" + filepath.Join(c.Dir, consoleSocket), "-serial", "chardev:console",
	}
	if c.MonitorDir != "" { // one client at a time: the launcher has a monitor of its own
		args = append(args, "-chardev", "socket,id=agent,server=on,wait=off,path="+filepath.Join(c.MonitorDir, hypervisor.QMPSocket), "-mon", "chardev=agent,mode=control")
	}
	for _, f := range c.Firmware {
		args = append(args, "-L", f)
	}
	if d.UUID != "" {
		args = append(args, "-uuid", d.UUID)
	}
	for i, p := range ports {
		if p.Plugged {
			args = append(args, "-netdev", backend(i, p), "-device", device(i, p))
		}
	}
	return args
}

// qemu is a QEMU process.
type qemu struct {
	process *os.Process
	qmp     *qmp.Conn
	// ended is closed when the process has, after exit was set: nil for status 0.
	ended chan struct{}
	exit  error
}

// startQEMU returns when QEMU answers. It is killed when ctx ends.
func (l *launcher) startQEMU(ctx context.Context, args []string) (*qemu, error) {
	wait, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	control, err := listen(wait, filepath.Join(l.config.Dir, qmpSocket))
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	serial, err := listen(wait, filepath.Join(l.config.Dir, consoleSocket))
	if err != nil {
		return nil, err
	}
	defer func() { _ = serial.Close() }()
	q := &qemu{ended: make(chan struct{})}
	if err := q.spawn(ctx, l.config, args); err != nil {
		return nil, err
	}
	go func() {
		<-q.ended
		cancel()
	}()
	serialConn, err := accept(wait, serial)
	if err != nil {
		return nil, q.failed("connect to its console", err)
	}
	go l.console.serve(serialConn)
	conn, err := accept(wait, control)
	if err != nil {
		return nil, q.failed("connect to its machine protocol", err)
	}
	if q.qmp, err = qmp.New(wait, conn, func(e qmp.Event) { l.onEvent(q, e) }); err != nil {
		return nil, q.failed("speak to it", err)
	}
	return q, nil
}

// failed ends a QEMU that does not work.
func (q *qemu) failed(what string, err error) error {
	_ = q.process.Kill() // it may have ended
	<-q.ended
	if q.exit != nil {
		return fmt.Errorf("start QEMU: %w", q.exit)
	}
	return fmt.Errorf("start QEMU: %s: %w", what, err)
}

// spawn starts the process and waits for its end in the background.
func (q *qemu) spawn(ctx context.Context, c Config, args []string) error {
	cmd := exec.CommandContext(ctx, c.QEMU, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	started := make(chan error)
	go func() {
		// The kernel kills QEMU with the thread that has started it, which must therefore stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := cmd.Start()
		if err == nil {
			q.process = cmd.Process
		}
		started <- err
		if err != nil {
			return
		}
		said := follow(stderr, c)
		if err := cmd.Wait(); err != nil {
			q.exit = fmt.Errorf("%w: %s", err, cmp.Or(said, "it said nothing"))
		}
		close(q.ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	return nil
}

// follow logs what QEMU says and returns the last line of it.
func follow(stderr io.Reader, c Config) (last string) {
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		last = lines.Text()
		c.Log.Info("QEMU says", "line", last)
	}
	return last
}

// listen makes a socket in place of one of a QEMU before.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("make socket %s: it is a %T", path, l)
	}
	return u, nil
}

// accept is Accept that ends with ctx.
func accept(ctx context.Context, l *net.UnixListener) (net.Conn, error) {
	defer context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Now()) })()
	return l.Accept()
}
