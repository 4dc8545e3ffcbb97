package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// MigrateOptions describe a migration. The zero value is what virtctl migrate does.
type MigrateOptions struct {
	// To is the node; empty for any other.
	To string
	// Name is the migration's; empty for one that the API server makes, as virtctl has it.
	Name string
	// Hold are stages that are not entered until they are released.
	Hold []kubevirt.Stage
	// Delays are stages' own; see kubevirt.DelayAnnotation.
	Delays map[kubevirt.Stage]time.Duration
	// Fault goes wrong.
	Fault kubevirt.Fault
	// Mode is PreCopy when empty, or PostCopy.
	Mode kubevirtv1.MigrationMode
	// Bandwidth is in bytes a second; 0 for no limit.
	Bandwidth int64
	// PendingTimeout is how long the target pod may be pending; 0 for what KubeVirt has.
	PendingTimeout time.Duration
	// Hotplug lets the migration have an attachment pod, when it has any content.
	Hotplug string
}

func (o MigrateOptions) annotations() map[string]string {
	a := map[string]string{}
	set := func(name, value string) {
		if value != "" {
			a[name] = value
		}
	}
	var delays []string
	for _, stage := range slices.Sorted(maps.Keys(o.Delays)) {
		delays = append(delays, fmt.Sprintf("%s=%s", stage, o.Delays[stage]))
	}
	set(kubevirt.HoldAnnotation, stages(o.Hold))
	set(kubevirt.DelayAnnotation, strings.Join(delays, ","))
	set(kubevirt.FailAnnotation, string(o.Fault))
	set(kubevirt.ModeAnnotation, string(o.Mode))
	set(kubevirt.HotplugAnnotation, o.Hotplug)
	if o.Bandwidth > 0 {
		set(kubevirt.BandwidthAnnotation, strconv.FormatInt(o.Bandwidth, 10))
	}
	if o.PendingTimeout > 0 {
		set(kubevirt.PendingTimeoutAnnotation, o.PendingTimeout.String())
	}
	return a
}

func stages(list []kubevirt.Stage) string {
	var s []string
	for _, stage := range list {
		s = append(s, string(stage))
	}
	return strings.Join(s, ",")
}

// Migration is one migration of a VM.
type Migration struct {
	VM   *VM
	Name string
	UID  types.UID
}

// Migrate creates a migration, and returns at once.
func (m *VM) Migrate(ctx context.Context, o MigrateOptions) (*Migration, error) {
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: o.Name, Annotations: o.annotations()},
		Spec:       kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: m.Name},
	}
	if o.Name == "" {
		vmim.GenerateName = "kubevirt-migrate-vm-"
	}
	if o.To != "" {
		vmim.Spec.AddedNodeSelector = map[string]string{corev1.LabelHostname: o.To}
	}
	if err := m.vms.api.Create(ctx, vmim); err != nil {
		return nil, fmt.Errorf("create a migration of VM %s: %w", m, err)
	}
	return &Migration{VM: m, Name: vmim.Name, UID: vmim.UID}, nil
}

// Migrations are the VM's, the oldest first.
func (m *VM) Migrations(ctx context.Context) ([]kubevirtv1.VirtualMachineInstanceMigration, error) {
	var list kubevirtv1.VirtualMachineInstanceMigrationList
	if err := m.vms.api.List(ctx, &list, client.InNamespace(m.Namespace)); err != nil {
		return nil, fmt.Errorf("list the migrations of VM %s: %w", m, err)
	}
	list.Items = slices.DeleteFunc(list.Items, func(g kubevirtv1.VirtualMachineInstanceMigration) bool { return g.Spec.VMIName != m.Name })
	slices.SortFunc(list.Items, func(a, b kubevirtv1.VirtualMachineInstanceMigration) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return list.Items, nil
}

// String is NAMESPACE/NAME.
func (g *Migration) String() string { return g.VM.Namespace + "/" + g.Name }

// Get reads the VirtualMachineInstanceMigration.
func (g *Migration) Get(ctx context.Context) (*kubevirtv1.VirtualMachineInstanceMigration, error) {
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{}
	if err := g.VM.vms.api.Get(ctx, types.NamespacedName{Namespace: g.VM.Namespace, Name: g.Name}, vmim); err != nil {
		return nil, fmt.Errorf("read migration %s: %w", g, err)
	}
	return vmim, nil
}

// AwaitPhase returns the migration when it is in one of the phases.
func (g *Migration) AwaitPhase(ctx context.Context, phases ...kubevirtv1.VirtualMachineInstanceMigrationPhase) (*kubevirtv1.VirtualMachineInstanceMigration, error) {
	for {
		vmim, err := g.Get(ctx)
		if err == nil && slices.Contains(phases, vmim.Status.Phase) {
			return vmim, nil
		}
		if apierrors.IsNotFound(err) {
			return nil, err
		}
		if pauseErr := pause(ctx, vmPoll); pauseErr != nil {
			phase := kubevirtv1.MigrationPhaseUnset
			if vmim != nil {
				phase = vmim.Status.Phase
			}
			return vmim, fmt.Errorf("migration %s is %s, not one of %v: see godwit-lab logs hub/kubevirt: %w", g, phase, phases, errors.Join(err, pauseErr))
		}
	}
}

// Await returns the migration when it has ended, well or not, and only its last launcher runs.
func (g *Migration) Await(ctx context.Context) (*kubevirtv1.VirtualMachineInstanceMigration, error) {
	vmim, err := g.AwaitPhase(ctx, kubevirtv1.MigrationSucceeded, kubevirtv1.MigrationFailed)
	if err != nil {
		return nil, err
	}
	_, err = g.VM.Await(ctx, "settled after its migration", func(vmi *kubevirtv1.VirtualMachineInstance) bool {
		_, left := vmi.Labels[kubevirtv1.MigrationTargetNodeNameLabel]
		return !left
	})
	if err != nil {
		return vmim, err
	}
	// The VMI's record was copied to it meanwhile; a cancelled one may be gone.
	if now, err := g.Get(ctx); err == nil {
		vmim = now
	}
	return vmim, nil
}

// AwaitSuccess is Await, with an error if the migration failed.
func (g *Migration) AwaitSuccess(ctx context.Context) (*kubevirtv1.VirtualMachineInstanceMigration, error) {
	vmim, err := g.Await(ctx)
	if err == nil && vmim.Status.Phase != kubevirtv1.MigrationSucceeded {
		why := "no reason is given"
		if s := vmim.Status.MigrationState; s != nil && s.FailureReason != "" {
			why = s.FailureReason
		}
		err = fmt.Errorf("migration %s has failed: %s", g, why)
	}
	return vmim, err
}

// Hold sets the stages that are not entered; with none, the migration goes on.
func (g *Migration) Hold(ctx context.Context, hold ...kubevirt.Stage) error {
	vmim, err := g.Get(ctx)
	if err != nil {
		return err
	}
	from := client.MergeFrom(vmim.DeepCopy())
	delete(vmim.Annotations, kubevirt.HoldAnnotation)
	if len(hold) > 0 {
		metav1.SetMetaDataAnnotation(&vmim.ObjectMeta, kubevirt.HoldAnnotation, stages(hold))
	}
	if err := g.VM.vms.api.Patch(ctx, vmim, from); err != nil {
		return fmt.Errorf("hold migration %s: %w", g, err)
	}
	return nil
}

// Release lets the migration go on.
func (g *Migration) Release(ctx context.Context) error { return g.Hold(ctx) }

// Cancel cancels the migration as virtctl does: it deletes it. It does not wait.
func (g *Migration) Cancel(ctx context.Context) error {
	vmim := &kubevirtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{Namespace: g.VM.Namespace, Name: g.Name}}
	if err := g.VM.vms.api.Delete(ctx, vmim); err != nil {
		return fmt.Errorf("cancel migration %s: %w", g, err)
	}
	return nil
}

// AwaitGone returns when a cancelled migration is gone.
func (g *Migration) AwaitGone(ctx context.Context) error {
	for {
		_, err := g.Get(ctx)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if pauseErr := pause(ctx, vmPoll); pauseErr != nil {
			return fmt.Errorf("migration %s is not gone: %w", g, errors.Join(err, pauseErr))
		}
	}
}

// CancelEvacuation takes back that the VM is to leave its node, as virtctl evacuate-cancel does. A migration that runs goes on until it is cancelled too.
func (m *VM) CancelEvacuation(ctx context.Context) error {
	vmi, err := m.VMI(ctx)
	if err != nil {
		return err
	}
	from := client.MergeFrom(vmi.DeepCopy())
	vmi.Status.EvacuationNodeName = ""
	if err := m.vms.api.Patch(ctx, vmi, from); err != nil {
		return fmt.Errorf("cancel the evacuation of VM %s: %w", m, err)
	}
	return nil
}

// Journal is what QEMU and its launchers did for the VM, in the order in which it was noted.
func (m *VM) Journal() ([]kubevirt.Entry, error) {
	all, err := kubevirt.ReadJournal(m.vms.lab.journal())
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e kubevirt.Entry) bool { return e.Namespace != m.Namespace || e.VMI != m.Name }), nil
}

// Stop is QEMU's own stop of a VM that migrates.
type Stop struct {
	// Stopped is when the source's QEMU stopped the guest, Resumed when the target's let it run, both by the clock of this machine.
	Stopped, Resumed time.Time
}

// Duration is how long no processor of the guest ran.
func (s Stop) Duration() time.Duration { return s.Resumed.Sub(s.Stopped) }

// QEMU tells when QEMU stopped the VM in a migration that has succeeded, and let it run again.
func (g *Migration) QEMU(ctx context.Context) (Stop, error) {
	vmim, err := g.Get(ctx)
	if err != nil {
		return Stop{}, err
	}
	s := vmim.Status.MigrationState
	if s == nil || s.TargetPod == "" {
		return Stop{}, fmt.Errorf("migration %s was not handed off: QEMU has not stopped the VM", g)
	}
	entries, err := g.VM.Journal()
	if err != nil {
		return Stop{}, err
	}
	var stop Stop
	for _, e := range entries {
		switch {
		case e.Pod == s.SourcePod && e.Event == string(guest.Stopped):
			stop.Stopped = e.Time
		case e.Pod == s.TargetPod && e.Event == string(guest.Resumed) && stop.Resumed.IsZero():
			stop.Resumed = e.Time
		}
	}
	if stop.Stopped.IsZero() || stop.Resumed.IsZero() {
		return stop, fmt.Errorf("migration %s: the journal does not say when QEMU stopped the VM in %s and let it run in %s: %+v", g, s.SourcePod, s.TargetPod, stop)
	}
	return stop, nil
}
