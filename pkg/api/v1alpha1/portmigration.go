package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ObjectName names an object in the PortMigration's namespace.
type ObjectName struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid"`
}

// MigrationEnd is one side of a migration.
type MigrationEnd struct {
	// Node, which is also the name of the chassis.
	Node string `json:"node"`
	// Pod is the launcher there.
	Pod ObjectName `json:"pod"`
}

// MigratedPort is one of the VM's ports.
type MigratedPort struct {
	// Network that the port is on; "default" is the pod network.
	Network string `json:"network"`
	// Name of the LogicalSwitchPort, which is also the iface-id on either node.
	Name string `json:"name"`
	// MAC of the VM on it.
	MAC string `json:"mac"`
}

// PortMigrationSpec says what is moved. The controller writes it once, when it prepares the ports.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a PortMigration is a record: it cannot be changed"
type PortMigrationSpec struct {
	VMI ObjectName `json:"vmi"`
	// Migration is the VirtualMachineInstanceMigration.
	Migration ObjectName   `json:"migration"`
	Source    MigrationEnd `json:"source"`
	Target    MigrationEnd `json:"target"`
	// Ports of the VM, in order of network. One that is being plugged in or out is on one side only.
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=network
	Ports []MigratedPort `json:"ports"`
}

// StageName is a step of a migration.
type StageName string

// The stages of a migration, all seen by the controller, in the order in which they usually come. Any may be missing in one that fails. What the agents saw is in Observation.
const (
	// StageScheduled: the controller saw that the target pod has a node.
	StageScheduled StageName = "Scheduled"
	// StagePrepared: the northbound database asks for both chassis.
	StagePrepared StageName = "Prepared"
	// StageActivated: the controller saw the southbound database say that the target was activated.
	StageActivated StageName = "Activated"
	// StageReady: the controller saw KubeVirt say that the VM runs on the target.
	StageReady StageName = "Ready"
	// StageCommitted: the northbound database asks for the target's chassis alone.
	StageCommitted StageName = "Committed"
	// StageRolledBack: the northbound database asks for the source's chassis alone.
	StageRolledBack StageName = "RolledBack"
	// StageCompleted: KubeVirt called the migration over.
	StageCompleted StageName = "Completed"
)

// Stage is when a stage was reached.
type Stage struct {
	Name StageName `json:"name"`
	// Time by the controller's clock.
	Time metav1.MicroTime `json:"time"`
}

// Clock tells how far a node's clock can be trusted.
type Clock struct {
	// BootID of the machine: two nodes with the same one share a clock.
	BootID string `json:"bootID"`
	// Synchronized: the kernel says that the clock is disciplined by NTP or PTP (adjtimex(2), STA_UNSYNC is not set).
	Synchronized bool `json:"synchronized"`
	// MaxErrorMicroseconds is the kernel's bound of the clock's error, when it is synchronized.
	// +optional
	MaxErrorMicroseconds int64 `json:"maxErrorMicroseconds,omitempty"`
}

// ActivatedBy is what opened the ports on the target.
type ActivatedBy string

// What opens ports.
const (
	// ActivatedBySignal: the source's agent said that the VM was stopped there, and the target's agent sent a RARP.
	ActivatedBySignal ActivatedBy = "Signal"
	// ActivatedByRARP: the VM announced itself, or the target's agent did when the VM was ready.
	ActivatedByRARP ActivatedBy = "RARP"
)

// Observation is what the agent of one side saw at the ports' links. Times are by that node's clock, of the first port for which it happened last,
// so that the interruption is that of the slowest.
type Observation struct {
	Clock Clock `json:"clock"`
	// Attached: OVN has installed the port's flows here. Target only.
	// +optional
	Attached *metav1.MicroTime `json:"attached,omitempty"`
	// LastFrame that the VM sent here. Source only.
	// +optional
	LastFrame *metav1.MicroTime `json:"lastFrame,omitempty"`
	// Stopped: the hypervisor said that the migration had stopped the VM here. Source only.
	// +optional
	Stopped *metav1.MicroTime `json:"stopped,omitempty"`
	// FramesLost is how many frames were sent to the VM here from when it was stopped until the target's agent had opened the ports there. Source only.
	// +optional
	FramesLost *int64 `json:"framesLost,omitempty"`
	// ActivatedBy is what opened the ports. Target only.
	// +kubebuilder:validation:Enum=Signal;RARP
	// +optional
	ActivatedBy ActivatedBy `json:"activatedBy,omitempty"`
	// Opened: the agent opened the ports, on the source's signal. Target only.
	// +optional
	Opened *metav1.MicroTime `json:"opened,omitempty"`
	// FramesQueued is how many frames were sent to the VM here from when the ports were opened on the signal until it was heard. Target only.
	// +optional
	FramesQueued *int64 `json:"framesQueued,omitempty"`
	// Announced: the VM's first RARP, or the one by which the agent announced it when it was ready. Target only.
	// +optional
	Announced *metav1.MicroTime `json:"announced,omitempty"`
	// AnnouncedByAgent: no RARP came from the VM, so the agent sent it.
	// +optional
	AnnouncedByAgent bool `json:"announcedByAgent,omitempty"`
	// Unblocked: OVN lets pass here what the VM sends. It follows the announcement, or the signal, at once, unless ovn-controller is busy, or away. Target only.
	// +optional
	Unblocked *metav1.MicroTime `json:"unblocked,omitempty"`
	// FirstFrame that the VM sent here after the ports were open, by its announcement or the signal, which is no RARP. Target only.
	// +optional
	FirstFrame *metav1.MicroTime `json:"firstFrame,omitempty"`
	// FramesBeforeAnnouncement is how many frames the VM sent on the target before its ports were open: OVN dropped them. Target only.
	// +optional
	FramesBeforeAnnouncement int64 `json:"framesBeforeAnnouncement,omitempty"`
	// Connections tells of the hand-over of the VM's connections. Absent where there is none.
	// +optional
	Connections *Connections `json:"connections,omitempty"`
}

// Connections is what one side has done for connection tracking on the target to know the VM's connections: docs/migration.md, "Connections move with the VM".
type Connections struct {
	// Began: the target has what was known of connections then. Source only.
	// +optional
	Began *metav1.MicroTime `json:"began,omitempty"`
	// Ended: the target has the last of it, or it could not be told. The ports are not taken from the source before, for a second at most. Source only.
	// +optional
	Ended *metav1.MicroTime `json:"ended,omitempty"`
	// Left is how many the target was not told of in the end: there are too many of them, or they are of a kind that cannot be moved. Source only.
	// +optional
	Left int64 `json:"left"` // 0 too: it may become less, and what a merge patch does not have stays
	// Moved is how many the target did not know, Replaced how many of these it had learnt wrongly, from one direction alone. Target only.
	// +optional
	Moved int64 `json:"moved,omitempty"`
	// +optional
	Replaced int64 `json:"replaced,omitempty"`
	// Refused is how many the target has not taken. Target only.
	// +optional
	Refused int64 `json:"refused"` // 0 too
}

// Interruption is how long the network heard nothing of the VM.
type Interruption struct {
	// Milliseconds between the VM's last frame on the source and its first on the target, a RARP included, or the moment in which OVN let its frames pass there, if that came later. A VM that had nothing to say
	// makes it longer than the interruption was: it is an upper bound.
	Milliseconds string `json:"milliseconds"`
	// UncertaintyMilliseconds is by how much the two clocks may differ: 0 on one machine; empty when a clock is not synchronized, and the figure tells little.
	// +optional
	UncertaintyMilliseconds string `json:"uncertaintyMilliseconds,omitempty"`
}

// MigrationResult is how a migration ended.
type MigrationResult string

// The results.
const (
	MigrationRunning   MigrationResult = "Running"
	MigrationSucceeded MigrationResult = "Succeeded"
	MigrationFailed    MigrationResult = "Failed"
)

// PortMigrationStatus is how far it got. Source and target are written by the agents of those nodes, all else by the controller.
type PortMigrationStatus struct {
	// Phase of the ports; docs/migration.md tables them.
	// +optional
	Phase string `json:"phase,omitempty"`
	// Reason of the phase, in one word.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message of the phase.
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	Result MigrationResult `json:"result,omitempty"`
	// Stages that the controller saw, by its own clock.
	// +optional
	// +listType=map
	// +listMapKey=name
	Stages []Stage `json:"stages,omitempty"`
	// +optional
	Source *Observation `json:"source,omitempty"`
	// +optional
	Target *Observation `json:"target,omitempty"`
	// +optional
	Interruption *Interruption `json:"interruption,omitempty"`
}

// Over says whether the migration has ended, one way or the other.
func (s *PortMigrationStatus) Over() bool {
	return s.Result == MigrationSucceeded || s.Result == MigrationFailed
}

// Stage is when a stage was reached; ok is false if it was not, as far as is known.
func (s *PortMigrationStatus) Stage(name StageName) (at time.Time, ok bool) {
	for _, stage := range s.Stages {
		if stage.Name == name {
			return stage.Time.Time, true
		}
	}
	return time.Time{}, false
}

// PortMigration is the record of one live migration: what was asked of the network and when, and what it saw. The last of each VM are kept.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:selectablefield:JSONPath=`.spec.source.node`
// +kubebuilder:selectablefield:JSONPath=`.spec.target.node`
// +kubebuilder:selectablefield:JSONPath=`.spec.vmi.name`
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.spec.vmi.name`
// +kubebuilder:printcolumn:name="From",type=string,JSONPath=`.spec.source.node`
// +kubebuilder:printcolumn:name="To",type=string,JSONPath=`.spec.target.node`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Result",type=string,JSONPath=`.status.result`
// +kubebuilder:printcolumn:name="Interruption ms",type=string,JSONPath=`.status.interruption.milliseconds`
// +kubebuilder:printcolumn:name="Activated by",type=string,JSONPath=`.status.target.activatedBy`,priority=1
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type PortMigration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PortMigrationSpec `json:"spec"`
	// +optional
	Status PortMigrationStatus `json:"status,omitempty"`
}

// PortMigrationList is a list of PortMigrations.
//
// +kubebuilder:object:root=true
type PortMigrationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PortMigration `json:"items"`
}
