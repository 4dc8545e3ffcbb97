package kernel

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/kernel/cluster"
	"github.com/godwit-cni/godwit/test/kernel/control"
)

// hypervisor is what the agent of the VM's node is told by that a migration has stopped the VM.
type hypervisor struct {
	*scene
	pid int
	log string
}

// hypervisor is one for the VM where it is now. It ends with the test.
func (s *handingOver) hypervisor() *hypervisor {
	s.t.Helper()
	volume, err := s.vm.HypervisorVolume(s.t.Context(), s.vm.Live)
	if err != nil {
		s.t.Fatal(err)
	}
	h := &hypervisor{scene: s.scene, log: fmt.Sprintf("/var/log/%s-monitor-%d.log", s.vm.Netns, time.Now().UnixNano())}
	if h.pid, err = s.Start(s.t.Context(), control.Command{Args: []string{"tool", "monitor", volume}, Log: h.log}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Signal(context.WithoutCancel(s.t.Context()), h.pid, syscall.SIGKILL); err != nil {
			s.t.Errorf("end the VM's hypervisor: %v", err)
		}
	})
	s.says(h.log, "waits")
	return h
}

// halt stops the VM, and tells the agent so.
func (h *hypervisor) halt(v *cluster.VM) {
	h.t.Helper()
	h.says(h.log, "listened to")
	h.stopped(v)
	if err := h.Signal(h.t.Context(), h.pid, syscall.SIGUSR1); err != nil {
		h.t.Fatal(err)
	}
}

// withoutController ends the controller until what it returns is called, or the test ends.
func (s *scene) withoutController() (back func()) {
	s.t.Helper()
	ctx, gone := context.WithoutCancel(s.t.Context()), true
	if err := s.EndController(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	back = func() {
		if !gone {
			return
		}
		gone = false
		if err := s.StartController(ctx, controllerFlags()...); err != nil {
			s.t.Fatalf("start the controller again: %v", err)
		}
	}
	s.t.Cleanup(back)
	return back
}

// arriveBySignal is arrive with a VM whose stop the source's agent is told of. Nobody else can have the agent end the hand-over: there is no controller, which would say that the target was activated.
func (s *handingOver) arriveBySignal(h *hypervisor, vmim *kubevirtv1.VirtualMachineInstanceMigration, target *cluster.Pod) {
	s.t.Helper()
	source := s.vm.Live
	back := s.withoutController()
	h.halt(s.vm)
	s.await("end of the hand-over, by the signal", func(ctx context.Context) error {
		pm, err := s.record(ctx, vmim)
		if err != nil {
			return err
		}
		if at, ok := pm.Status.Stage(v1alpha1.StageActivated); ok {
			s.t.Fatalf("the record has the activation, at %s: there was to be no controller", at)
		}
		if from := pm.Status.Source; from == nil || from.Connections == nil || from.Connections.Ended == nil {
			err = errors.New("it has not ended")
		}
		return err
	})
	if err := s.vm.Arrive(s.t.Context(), target, "tool", "rarp", "eth0"); err != nil {
		s.t.Fatal(err)
	}
	s.goes(s.vm)
	s.activated(s.vm, target.Node.Name)
	back()
	if err := s.vm.Ready(s.t.Context(), target); err != nil {
		s.t.Fatal(err)
	}
	s.asked(s.vm, target.Node.Name, "")
	s.ended(s.vm, vmim, source)
	s.await("record of the signal", func(ctx context.Context) error {
		pm, err := s.record(ctx, vmim)
		if err != nil {
			return err
		}
		from, to := pm.Status.Source, pm.Status.Target
		if from == nil || from.Stopped == nil || to == nil || to.ActivatedBy != v1alpha1.ActivatedBySignal {
			return fmt.Errorf("source %+v, target %+v: want the stop, and the activation by %s", from, to, v1alpha1.ActivatedBySignal)
		}
		return nil
	})
}
