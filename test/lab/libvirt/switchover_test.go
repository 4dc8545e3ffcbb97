package libvirt

import (
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/pkg/hypervisor"
)

// vm is the VM's name; domain is what it is. QEMU's second monitor is for what the agent asks where there is no libvirt.
const (
	vm     = "default_web1"
	domain = `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>` + vm + `</name>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='` + bootImage + `'/><target dev='fda'/><readonly/></disk>
    <controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-chardev'/><qemu:arg value='socket,id=agent,server=on,wait=off,path=` + monitorDir + "/" + hypervisor.QMPSocket + `'/>
    <qemu:arg value='-mon'/><qemu:arg value='chardev=agent,mode=control'/>
  </qemu:commandline>
</domain>
`
)

// TestSwitchoverLibvirt moves a VM between two launchers, and lets it come to grief: what the agent is told by libvirt, and by QEMU's own monitor, at each step and nothing besides. Launchers of KubeVirt run as
// user 107 unless they are told otherwise.
func TestSwitchoverLibvirt(t *testing.T) {
	for _, c := range []struct {
		name string
		user int
		back func(*story, *testing.T)
	}{
		{"of user 107", 107, (*story).backSuspended},
		{"of root", 0, (*story).backPostCopy}, // which asks of the kernel what others than root may not
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &story{world: newWorld(t, c.user)}
			t.Log(strings.TrimSpace(s.virsh(t, names[0], "version")))
			s.create(t)
			s.paused(t)
			s.aborted(t)
			s.failed(t)
			s.moved(t)
			c.back(s, t)
		})
	}
}

// story is what happens to the VM, which is on launcher a until it has moved to b.
type story struct {
	*world
	// libvirt and qemu are what a tells.
	libvirt, qemu <-chan told
}

// create starts the VM on a.
func (s *story) create(t *testing.T) {
	s.virsh(t, names[0], "create", "/dev/stdin")
	s.libvirt, s.qemu = s.watch(t, launcher(names[0])), s.watch(t, monitor(names[0]))
}

// paused: its user stops the VM, and no migration. Were anything told of the stop, it would come before what is told of its end.
func (s *story) paused(t *testing.T) {
	s.virsh(t, names[0], "suspend", vm)
	s.virsh(t, names[0], "resume", vm)
	expect(t, "the VM goes on after its user's pause", hypervisor.Resumed, s.libvirt, s.qemu)
}

// aborted: while the memory is copied the VM runs, and nothing is told.
func (s *story) aborted(t *testing.T) {
	end := s.migrate(t, names[0])
	s.virsh(t, names[0], "domjobabort", vm)
	if err := <-end; err == nil {
		t.Fatal("the migration was aborted, and has succeeded")
	}
}

// failed: QEMU ends on the target between the VM's stop and its going on there, which the target's libvirt, held up, does not yet ask of it.
func (s *story) failed(t *testing.T) {
	end := s.migrate(t, names[0])
	daemon := "libvirtd"
	if s.process(t, names[1], daemon) == 0 {
		daemon = "virtqemud"
	}
	s.signal(t, names[1], daemon, syscall.SIGSTOP)
	s.converge(t, names[0])
	expect(t, "a migration stops the VM", hypervisor.Stopped, s.libvirt, s.qemu)
	s.signal(t, names[1], "qemu", syscall.SIGKILL)
	s.signal(t, names[1], daemon, syscall.SIGCONT)
	expect(t, "QEMU has ended on the target", hypervisor.Resumed, s.libvirt, s.qemu)
	if err := <-end; err == nil {
		t.Fatal("QEMU was killed on the target, and the migration has succeeded")
	} else {
		t.Log(err)
	}
	s.runs(t, names[0])
}

// moved: the VM is on b afterwards. QEMU ends on a, and libvirt stays.
func (s *story) moved(t *testing.T) {
	end := s.migrate(t, names[0])
	s.converge(t, names[0])
	expect(t, "a migration stops the VM", hypervisor.Stopped, s.libvirt, s.qemu)
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	closed(t, s.qemu)
	s.runs(t, names[1])
}

// backPostCopy: the VM runs on a before all of its memory is there. The libvirt that has told of its leaving tells that it runs again, and has told nothing in between.
func (s *story) backPostCopy(t *testing.T) {
	libvirt, qemu := s.watch(t, launcher(names[1])), s.watch(t, monitor(names[1]))
	end := s.migrate(t, names[1], "--postcopy")
	s.virsh(t, names[1], "migrate-postcopy", vm)
	expect(t, "post-copy stops the VM", hypervisor.Stopped, libvirt, qemu)
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	expect(t, "the VM has come", hypervisor.Resumed, s.libvirt)
	closed(t, qemu)
	s.runs(t, names[0])
}

// backSuspended: the VM is suspended while its memory is copied, as KubeVirt does to one that is too busy and may be disturbed. Neither libvirt nor QEMU tells that from the stop of the migration itself, and nor
// need the agents: it is the target where the VM runs next.
func (s *story) backSuspended(t *testing.T) {
	libvirt, qemu := s.watch(t, launcher(names[1])), s.watch(t, monitor(names[1]))
	end := s.migrate(t, names[1])
	s.virsh(t, names[1], "suspend", vm)
	expect(t, "the VM is suspended while it migrates", hypervisor.Stopped, libvirt, qemu)
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	expect(t, "the VM has come", hypervisor.Resumed, s.libvirt)
	closed(t, qemu)
	s.runs(t, names[0])
}

var iterations = regexp.MustCompile(`Iteration: +(\d+)`)

// migrate begins to move the VM from a launcher to the other one, as KubeVirt does: from libvirt to libvirt, all of it through sockets. It returns while the memory is copied, which goes on until something is done: the VM writes to it.
func (s *story) migrate(t *testing.T, from string, how ...string) <-chan error {
	t.Helper()
	s.virsh(t, from, "migrate-setmaxdowntime", vm, "1") // or a machine so busy that the VM hardly runs lets it come to its end
	end := make(chan error, 1)
	go func() {
		args := append([]string{"migrate", "--live", "--p2p", "--bandwidth", "1", "--migrateuri", "unix://" + migrationSocket}, how...)
		_, err := s.try(t, from, append(args, vm, s.uri(peer))...)
		end <- err
	}()
	s.await(t, "the copying of the VM's memory", func() bool {
		select {
		case err := <-end:
			t.Fatalf("the migration has ended before it had begun: %v", err)
		default:
		}
		out, err := s.try(t, from, "domjobinfo", vm)
		if m := iterations.FindStringSubmatch(out); err == nil && m != nil {
			n, err := strconv.Atoi(m[1])
			return err == nil && n >= 2
		}
		return false
	})
	return end
}

// converge lets the copying get to its end.
func (s *story) converge(t *testing.T, from string) {
	t.Helper()
	s.virsh(t, from, "migrate-setmaxdowntime", vm, "1000")
	s.virsh(t, from, "migrate-setspeed", vm, "1024")
}

// runs sees that the VM does so on this launcher and that the other one has none.
func (s *story) runs(t *testing.T, name string) {
	t.Helper()
	if state := strings.TrimSpace(s.virsh(t, name, "domstate", vm)); state != "running" {
		t.Errorf("libvirt in launcher %s says that the VM is %s", name, state)
	}
	if list := strings.TrimSpace(s.virsh(t, other(name), "list", "--name", "--all")); list != "" {
		t.Errorf("libvirt in launcher %s has %s", other(name), list)
	}
}

// expect takes the next event of each, which is this one, and tells how long after the first the others had it.
func expect(t *testing.T, why string, want hypervisor.Event, channels ...<-chan told) {
	t.Helper()
	var at []time.Time
	late := time.After(patience)
	for _, events := range channels {
		select {
		case e, ok := <-events:
			if !ok || e.event != want {
				t.Fatalf("%s: told %v (%t), want %v", why, e.event, ok, want)
			}
			at = append(at, e.at)
		case <-late:
			t.Fatalf("%s: nothing is told after %s, want %v", why, patience, want)
		}
	}
	if len(at) == 2 {
		t.Logf("%s: %v, libvirt %s after QEMU", why, want, at[0].Sub(at[1]).Round(time.Microsecond))
	}
}

// closed sees that nothing more is told.
func closed(t *testing.T, events <-chan told) {
	t.Helper()
	select {
	case e, ok := <-events:
		if ok {
			t.Errorf("told %v, want the end", e.event)
		}
	case <-time.After(patience):
		t.Errorf("no end after %s", patience)
	}
}
