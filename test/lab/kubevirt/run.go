package kubevirt

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// Requests that are made of launchers. Those of migrations have the migration's UID in their name, for a launcher may have several.
const (
	requestStart    = "start"
	requestShutdown = "shutdown"
	requestLeave    = "leave"
	requestKill     = "kill"
)

const (
	// maxDowntime is KubeVirt's default, which the VMI tells.
	maxDowntime = 900 * time.Millisecond
	// plannedDowntime is what QEMU plans with: less, for it uses up what it may, and a stop by QEMU hides what the network does.
	plannedDowntime = 50 * time.Millisecond
)

func (m *vmim) requestName(what string) string { return what + " " + string(m.UID) }

// prepareTarget lets the target's handler plumb the pod and start a QEMU that waits, then tells.
func (m *vmim) prepareTarget() *step {
	v := m.w.view(m.target.UID)
	if err := v.failure(m.requestName("incoming")); err != nil {
		return m.failed("Target could not be prepared: " + err.Error())
	}
	asked := v.wasAsked(m.requestName("incoming"))
	switch {
	case !asked && (!v.connected || v.State == guest.Idle):
		return m.at(StageIncoming, m.incoming())
	case asked && !v.did(m.requestName("incoming")), v.State != guest.Receiving:
		return waits("the target does not wait for the VM yet", 0)
	}
	s := m.w.changeVMI("the target is ready", func(vmi *kubevirtv1.VirtualMachineInstance) {
		state := vmi.Status.MigrationState
		state.TargetNodeAddress = "192.0.2.10" // the handlers' streams take no network
		state.TargetDirectMigrationNodePorts = map[string]int{"40001": 0, "40002": 49152}
	})
	if s != nil {
		return m.at(StageTargetAddress, s)
	}
	return m.to(kubevirtv1.MigrationTargetReady)
}

func (m *vmim) incoming() *step {
	fault := m.knobs().fault()
	d, nics := m.w.domain(), nicsOf(m.w.vmi)
	in := guest.Incoming{PostCopy: m.postCopy(), HoldResume: m.knobs().held(StageResume) || conditionTrue(m.w.vmi, kubevirtv1.VirtualMachineInstancePaused)}
	switch fault {
	case FaultTargetLate, FaultTargetPod:
		in.FailStatus = 1
	case FaultTargetResumed:
		in.KillOn, in.FailStatus = guest.Resumed, 1
	default:
	}
	// The guest keeps its MAC address whatever the target's pod has. A NIC that it does not have yet is plugged when it has come.
	if source := m.w.current(); source != nil && m.w.view(source.UID).connected {
		has := m.w.view(source.UID).NICs
		for i := range nics {
			at := slices.IndexFunc(has, func(n guest.Plumbed) bool { return n.Name == nics[i].Name && n.Plugged })
			if at < 0 {
				in.Later = append(in.Later, nics[i].Name)
				continue
			}
			nics[i].MAC = has[at].MAC
		}
	}
	return m.w.request(m.target, m.requestName("incoming"), func(ctx context.Context, l Launcher) error {
		if _, err := l.Plumb(ctx, nics); err != nil {
			return err
		}
		if err := l.Incoming(ctx, d, in); err != nil || fault != FaultTargetPod {
			return err
		}
		return l.Kill(ctx)
	})
}

// start is the source handler's: it tells that the migration begins.
func (m *vmim) start() *step {
	s := m.w.changeVMI("the migration begins", func(vmi *kubevirtv1.VirtualMachineInstance) {
		state := vmi.Status.MigrationState
		if state.StartTimestamp == nil {
			now := metav1.NewTime(m.w.now)
			state.StartTimestamp, state.Mode = &now, kubevirtv1.MigrationPreCopy
		}
	})
	if s != nil {
		return m.at(StageStart, s)
	}
	return m.to(kubevirtv1.MigrationRunning)
}

// run follows QEMU's migration, and lets the VM arrive.
func (m *vmim) run() *step {
	state := m.w.state()
	source := m.w.pod(state.SourcePod)
	if state.EndTimestamp == nil {
		if s := first(m.w, func(*world) *step { return m.send(source) }, m.rule((*vmim).detect)); s != nil {
			return s
		}
		return waits("QEMU migrates", 0)
	}
	return m.arrived()
}

// send drives the source's QEMU.
func (m *vmim) send(source *corev1.Pod) *step {
	if source == nil {
		return nil
	}
	v, target := m.w.view(source.UID), m.w.view(m.target.UID)
	migrate := m.requestName("migrate")
	if !v.wasAsked(migrate) && (v.State == guest.Running || v.State == guest.Paused && m.w.pauseWanted()) {
		return m.at(StageMigrate, m.migrate(source))
	}
	if err := v.failure(migrate); err != nil {
		return m.failed("Live migration failed: " + err.Error())
	}
	// A source that does not run was asked by an earlier process of this program.
	if begun := v.did(migrate) || !v.wasAsked(migrate) && v.connected && v.State != guest.Running; !begun {
		return nil
	}
	switch v.migration() {
	case guest.Active:
		return m.duringCopy(source)
	case guest.PreSwitchover:
		return m.atSwitchover(source)
	case guest.PostCopyActive:
		return m.duringPostCopy()
	case guest.Failed:
		if !target.connected {
			// Between two nodes a stream hangs when one of them dies, so that nobody acts before the target pod is gone. Here it breaks.
			return waits("the target does not answer", limitPoll)
		}
		return m.failed("Live migration failed: " + v.Migration.Error)
	case guest.Cancelled:
		return m.failed("Live migration failed: it was cancelled")
	default:
	}
	if target.connected && target.arrivedPaused() && !m.w.pauseWanted() {
		// The target was told to hold the VM; it may run now.
		return m.at(StageResume, m.w.request(m.target, m.requestName("resume"), func(ctx context.Context, l Launcher) error { return l.Resume(ctx) }))
	}
	return nil
}

func (m *vmim) migrate(source *corev1.Pod) *step {
	fault := m.knobs().fault()
	g := guest.Migration{
		DowntimeLimit: m.knobs().duration(DowntimeAnnotation, plannedDowntime), PostCopy: m.postCopy(),
		HoldBeforeSwitchover: m.knobs().held(StageSwitchover) || fault == FaultTargetLate || fault == FaultTargetLateSucceeded,
	}
	if q, err := resource.ParseQuantity(m.knobs().get(BandwidthAnnotation)); err == nil {
		g.Bandwidth = q.Value()
	}
	target, e := m.target, m.w.engine
	return m.w.request(source, m.requestName("migrate"), func(ctx context.Context, l Launcher) error {
		if err := e.domains.relay(e.ctx, source, target); err != nil { //nolint:contextcheck // it outlives this request
			return err
		}
		return l.Migrate(ctx, g)
	})
}

// duringCopy: memory is copied and the VM runs on the source.
func (m *vmim) duringCopy(source *corev1.Pod) *step {
	switch {
	case m.knobs().fault() == FaultSourceCrash:
		return m.w.request(source, m.requestName("crash"), func(ctx context.Context, l Launcher) error { return l.Kill(ctx) })
	case m.postCopy():
		s := m.w.request(source, m.requestName("post-copy"), func(ctx context.Context, l Launcher) error { return l.StartPostCopy(ctx) })
		return m.at(StagePostCopy, s)
	}
	return nil
}

// atSwitchover: the source's QEMU has stopped the VM and waits.
func (m *vmim) atSwitchover(source *corev1.Pod) *step {
	switch m.knobs().fault() {
	case FaultTargetLate, FaultTargetLateSucceeded:
		if s := m.detected(); s != nil {
			return m.at(StageDetected, s)
		}
		crash := m.w.request(m.target, m.requestName("crash"), func(ctx context.Context, l Launcher) error { return l.Kill(ctx) })
		if crash != nil || !m.w.view(m.target.UID).did(m.requestName("crash")) {
			return crash
		}
		// The source notices that there is no target any more when it sends something.
	default:
	}
	s := m.w.request(source, m.requestName("switchover"), func(ctx context.Context, l Launcher) error { return l.ContinueMigration(ctx) })
	return m.at(StageSwitchover, s)
}

// duringPostCopy: the VM runs on the target and its memory follows.
func (m *vmim) duringPostCopy() *step {
	s := m.w.changeVMI("post-copy mode", func(vmi *kubevirtv1.VirtualMachineInstance) {
		vmi.Status.MigrationState.Mode = kubevirtv1.MigrationPostCopy
	})
	if s != nil || m.knobs().fault() != FaultPostCopy {
		return s
	}
	target, domains := m.target.UID, m.w.engine.domains
	return m.w.request(m.target, m.requestName("cut"), func(ctx context.Context, l Launcher) error {
		domains.cut(target)
		return l.Kill(ctx) // without its memory the VM is lost
	})
}

// detect tells that the VM runs on the target, or is there and is to be paused, and moves it there when its memory has arrived.
func (m *vmim) detect() *step {
	v := m.w.view(m.target.UID)
	arrived := v.ran || v.arrivedPaused() && m.w.pauseWanted()
	if !arrived || m.knobs().fault() == FaultTargetResumed {
		return nil
	}
	if s := m.detected(); s != nil {
		return m.at(StageDetected, s)
	}
	ready := m.w.changeVMI("the domain is ready", func(vmi *kubevirtv1.VirtualMachineInstance) {
		if state := vmi.Status.MigrationState; state.TargetNodeDomainReadyTimestamp == nil {
			now := metav1.NewTime(m.w.now)
			state.TargetNodeDomainReadyTimestamp = &now
		}
	})
	if ready != nil {
		return m.at(StageReady, ready)
	}
	at := m.w.state().TargetNodeDomainReadyTimestamp
	annotate := m.w.changePod(m.target, "target ready", func(p *corev1.Pod) {
		metav1.SetMetaDataAnnotation(&p.ObjectMeta, kubevirtv1.MigrationTargetReadyTimestamp, at.UTC().String())
	})
	if annotate != nil {
		return m.at(StageReadyAnnotation, annotate)
	}
	if v.migration() != guest.Completed {
		return waits("memory follows", 0)
	}
	return m.at(StageEndTimestamp, m.w.changeVMI("the VM has moved", func(vmi *kubevirtv1.VirtualMachineInstance) {
		now := metav1.NewTime(m.w.now)
		vmi.Status.MigrationState.EndTimestamp = &now
		vmi.Status.NodeName = m.target.Spec.NodeName
		vmi.Status.EvacuationNodeName, vmi.Status.LauncherContainerImageVersion = "", ""
		metav1.SetMetaDataLabel(&vmi.ObjectMeta, kubevirtv1.NodeNameLabel, m.target.Spec.NodeName)
	}))
}

func (m *vmim) detected() *step {
	return m.w.changeVMI("the domain is detected", func(vmi *kubevirtv1.VirtualMachineInstance) {
		vmi.Status.MigrationState.TargetNodeDomainDetected = true
	})
}

// arrived: the VM runs on the target for everybody; the records follow, the migration's own last.
func (m *vmim) arrived() *step {
	if s := m.w.unpaused(m.target); s != nil {
		return m.at(StageUnpaused, s)
	}
	label := m.w.changePod(m.target, "node label", func(p *corev1.Pod) {
		metav1.SetMetaDataLabel(&p.ObjectMeta, kubevirtv1.NodeNameLabel, m.w.vmi.Status.NodeName)
	})
	if label != nil {
		return m.at(StageNodeLabel, label)
	}
	version := m.w.changeVMI("launcher version", func(vmi *kubevirtv1.VirtualMachineInstance) {
		vmi.Status.LauncherContainerImageVersion = launcherVersion
	})
	if version != nil {
		return version
	}
	completed := m.w.changeVMI("completed", func(vmi *kubevirtv1.VirtualMachineInstance) { vmi.Status.MigrationState.Completed = true })
	if completed != nil {
		return m.at(StageCompleted, completed)
	}
	return m.to(kubevirtv1.MigrationSucceeded)
}
