package kubevirt

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations by which a test changes what happens. On a VirtualMachineInstanceMigration they are about that migration, on a VirtualMachineInstance (or a
// VirtualMachine's template) about the VM and all of its migrations. They are read before every step, so they may be set and removed at any time.
const (
	// HoldAnnotation names stages, separated by commas, that are not entered as long as it does.
	HoldAnnotation = "lab.godwit.dev/hold"
	// DelayAnnotation delays stages, for example "EndTimestamp=0s,Completed=2s", counted from when each could have been entered.
	DelayAnnotation = "lab.godwit.dev/delay"
	// FailAnnotation names one Fault.
	FailAnnotation = "lab.godwit.dev/fail"
	// ModeAnnotation is "PostCopy" for a migration that starts the VM on the target before its memory is there.
	ModeAnnotation = "lab.godwit.dev/mode"
	// BandwidthAnnotation limits a migration, in bytes a second, as a quantity such as 8Mi: a guest of 96 MB then takes some seconds.
	BandwidthAnnotation = "lab.godwit.dev/bandwidth"
	// DowntimeAnnotation is how long QEMU may plan to stop the guest; 50 ms without it.
	DowntimeAnnotation = "lab.godwit.dev/downtime"
	// PendingTimeoutAnnotation is after how long a target pod that cannot be scheduled, or does not start, is deleted: 5 and 15 minutes in KubeVirt.
	PendingTimeoutAnnotation = "lab.godwit.dev/pending-timeout"
	// HotplugAnnotation lets a migration have a hotplug attachment pod, as it has in KubeVirt when the VM has hotplugged volumes.
	HotplugAnnotation = "lab.godwit.dev/hotplug"
	// SidecarAnnotation, of a VM, gives its launcher pods a second container, which goes on when the VM has ended.
	SidecarAnnotation = "lab.godwit.dev/sidecar"
	// PauseAnnotation, of a VMI, pauses the guest as long as it is there, as virtctl pause does.
	PauseAnnotation = "lab.godwit.dev/pause"
	// NodeTimeoutAnnotation, of a VM, is how long its node's heartbeat may be missing: 5 minutes in KubeVirt.
	NodeTimeoutAnnotation = "lab.godwit.dev/node-timeout"
)

// Fault is something that goes wrong in a migration, once.
type Fault string

// The faults, one for each row of KubeVirt's failures that somebody outside cannot bring about by deleting something.
const (
	NoFault Fault = ""
	// FaultTargetLate: QEMU on the target ends after its domain was detected, before it ran. The source goes on; the target pod ends.
	FaultTargetLate Fault = "target-late"
	// FaultTargetPod: the target's launcher ends while the target is prepared. Its pod fails.
	FaultTargetPod Fault = "target-pod"
	// FaultTargetStuck: the target pod is scheduled and never starts, for its image cannot be had.
	FaultTargetStuck Fault = "target-stuck"
	// FaultUnschedulable: no node suits the target pod.
	FaultUnschedulable Fault = "unschedulable"
	// FaultTargetLateSucceeded is FaultTargetLate with a target pod that is Succeeded and not Failed.
	FaultTargetLateSucceeded Fault = "target-late-succeeded"
	// FaultTargetResumed: QEMU on the target ends just after it began to run the VM, and announced it. The source goes on, and announces nothing.
	FaultTargetResumed Fault = "target-resumed"
	// FaultSourceCrash: QEMU on the source dies while it migrates. The VM fails.
	FaultSourceCrash Fault = "source-crash"
	// FaultPostCopy: the connection breaks while the VM runs in post-copy mode. The VM fails.
	FaultPostCopy Fault = "postcopy"
)

// Stage is a step that can be held or delayed. Those of a migration are in order.
type Stage string

// The stages of a VM's start.
const (
	StageLauncherPod Stage = "LauncherPod"
	StageStartDomain Stage = "StartDomain"
)

// The stages of a migration. The comment says what happens when one is entered.
const (
	StagePending         Stage = "Pending"         // VMIM phase
	StageTargetPod       Stage = "TargetPod"       // the target pod is created
	StageScheduling      Stage = "Scheduling"      // VMIM phase
	StageScheduled       Stage = "Scheduled"       // VMIM phase: the target pod is ready
	StageHandOff         Stage = "HandOff"         // the VMI's migrationState names the migration, both pods and both nodes
	StagePreparingTarget Stage = "PreparingTarget" // VMIM phase
	StageIncoming        Stage = "Incoming"        // the target is plumbed, its QEMU waits
	StageTargetAddress   Stage = "TargetAddress"   // the VMI tells that the target is ready
	StageTargetReady     Stage = "TargetReady"     // VMIM phase
	StageStart           Stage = "Start"           // the VMI's startTimestamp and mode
	StageRunning         Stage = "Running"         // VMIM phase
	StageMigrate         Stage = "Migrate"         // QEMU begins to migrate
	StagePostCopy        Stage = "PostCopy"        // QEMU switches over before memory is there, in that mode
	StageSwitchover      Stage = "Switchover"      // the source's QEMU has stopped the VM; held before Migrate is entered, it waits there
	StageResume          Stage = "Resume"          // the target's QEMU lets the VM run; held before Incoming is entered, it waits there
	StageDetected        Stage = "Detected"        // the VMI's targetNodeDomainDetected: the target's QEMU runs the VM already
	StageReady           Stage = "Ready"           // the VMI's targetNodeDomainReadyTimestamp
	StageReadyAnnotation Stage = "ReadyAnnotation" // the target pod's annotation
	StageEndTimestamp    Stage = "EndTimestamp"    // the VMI moves: endTimestamp, label and status nodeName
	StageUnpaused        Stage = "Unpaused"        // the target pod's condition
	StageNodeLabel       Stage = "NodeLabel"       // the target pod's label nodeName
	StageCompleted       Stage = "Completed"       // the VMI's completed
	StageSucceeded       Stage = "Succeeded"       // VMIM phase
	StageRecord          Stage = "Record"          // the VMIM gets the VMI's migrationState
	StageFinalize        Stage = "Finalize"        // the VMIM loses its finalizer
	StageSourceEnds      Stage = "SourceEnds"      // the source's launcher ends
	StageAbort           Stage = "Abort"           // the VMI's abortRequested, when the VMIM was deleted
	StageAborted         Stage = "Aborted"         // QEMU's migration is cancelled
	StageFailed          Stage = "Failed"          // VMIM phase
)

// defaultDelays are the ones that KubeVirt has by its own design and the machine does not bring about.
var defaultDelays = map[Stage]time.Duration{StageEndTimestamp: 650 * time.Millisecond}

// knobs are what the annotations of a migration and of its VM say; the migration's come first.
type knobs []map[string]string

func knobsOf(objects ...metav1.Object) knobs {
	var k knobs
	for _, o := range objects {
		k = append(k, o.GetAnnotations())
	}
	return k
}

func (k knobs) get(name string) string {
	for _, annotations := range k {
		if v, ok := annotations[name]; ok {
			return v
		}
	}
	return ""
}

func (k knobs) has(name string) bool {
	return slices.ContainsFunc(k, func(annotations map[string]string) bool {
		_, ok := annotations[name]
		return ok
	})
}

// held: any of the objects may hold a stage.
func (k knobs) held(s Stage) bool {
	for _, annotations := range k {
		for name := range strings.SplitSeq(annotations[HoldAnnotation], ",") {
			if s != "" && Stage(strings.TrimSpace(name)) == s {
				return true
			}
		}
	}
	return false
}

func (k knobs) fault() Fault { return Fault(k.get(FailAnnotation)) }

func (k knobs) delay(s Stage) time.Duration {
	for part := range strings.SplitSeq(k.get(DelayAnnotation), ",") {
		name, value, _ := strings.Cut(part, "=")
		if d, err := time.ParseDuration(value); err == nil && Stage(strings.TrimSpace(name)) == s {
			return d
		}
	}
	return defaultDelays[s]
}

// duration reads an annotation, or returns what KubeVirt has.
func (k knobs) duration(name string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(k.get(name)); err == nil {
		return d
	}
	return otherwise
}

// check says what of the annotations cannot be read, nil when all can: a test with a misspelt knob would prove nothing.
func (k knobs) check() error {
	for part := range strings.SplitSeq(k.get(DelayAnnotation), ",") {
		if part == "" {
			continue
		}
		_, value, _ := strings.Cut(part, "=")
		if _, err := time.ParseDuration(value); err != nil {
			return fmt.Errorf("annotation %s: %q is not STAGE=DURATION: %w", DelayAnnotation, part, err)
		}
	}
	for _, name := range []string{PendingTimeoutAnnotation, NodeTimeoutAnnotation, DowntimeAnnotation} {
		if v := k.get(name); v != "" {
			if _, err := time.ParseDuration(v); err != nil {
				return fmt.Errorf("annotation %s: %w", name, err)
			}
		}
	}
	faults := []Fault{
		NoFault, FaultTargetLate, FaultTargetLateSucceeded, FaultTargetPod, FaultTargetStuck, FaultUnschedulable, FaultTargetResumed, FaultSourceCrash, FaultPostCopy,
	}
	if !slices.Contains(faults, k.fault()) {
		return fmt.Errorf("annotation %s: there is no fault %q: there are %q", FailAnnotation, k.fault(), faults)
	}
	return nil
}
