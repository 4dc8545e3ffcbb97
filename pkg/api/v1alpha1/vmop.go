package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// OperationType is what is done to a VM.
type OperationType string

// Values of OperationType.
const (
	OperationStart   OperationType = "Start"
	OperationStop    OperationType = "Stop"
	OperationRestart OperationType = "Restart"
	// OperationEvict: away from its node, to any other.
	OperationEvict OperationType = "Evict"
	// OperationMigrate: to a node.
	OperationMigrate OperationType = "Migrate"
)

// OperationPhase is how far an operation is.
type OperationPhase string

// Values of OperationPhase.
const (
	OperationPending    OperationPhase = "Pending"
	OperationInProgress OperationPhase = "InProgress"
	OperationCompleted  OperationPhase = "Completed"
	OperationFailed     OperationPhase = "Failed"
	// OperationSuperseded: a later operation wants something else of the VM.
	OperationSuperseded OperationPhase = "Superseded"
)

// Final reports whether the phase is the last one.
func (p OperationPhase) Final() bool {
	return p == OperationCompleted || p == OperationFailed || p == OperationSuperseded
}

// OperationFinalizer lets an operation that is deleted end what it began.
const OperationFinalizer = "godwit.dev/operation"

// VirtualMachineOperationSpec is what is asked for. It cannot be changed.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="an operation cannot be changed: delete it, which cancels it, and create another"
// +kubebuilder:validation:XValidation:rule="(self.type == 'Migrate') == has(self.targetNode)",message="type Migrate needs a targetNode, the other types have none: Evict is to any node"
type VirtualMachineOperationSpec struct {
	// VirtualMachine is the name of the VM, in the operation's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	VirtualMachine string `json:"virtualMachine"`
	// Type is what is done.
	// +kubebuilder:validation:Enum=Start;Stop;Restart;Evict;Migrate
	Type OperationType `json:"type"`
	// TargetNode is the name of the node to which the VM migrates.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	TargetNode string `json:"targetNode,omitempty"`
}

// VirtualMachineOperationStatus is what has become of it.
type VirtualMachineOperationStatus struct {
	// Phase is Pending, InProgress, Completed, Failed or Superseded.
	// +optional
	Phase OperationPhase `json:"phase,omitempty"`
	// Reason is why, in a word, Message in a sentence.
	// +optional
	Reason string `json:"reason,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// Progress is how far it is, of 100.
	// +optional
	Progress int32 `json:"progress,omitempty"`
	// Instance is the UID of the VM's instance when the operation began, empty if it had none.
	// +optional
	Instance types.UID `json:"instance,omitempty"`
	// Migration is the name of the VirtualMachineInstanceMigration that carries it out.
	// +optional
	Migration string `json:"migration,omitempty"`
	// Requested: KubeVirt has been asked, and has agreed.
	// +optional
	Requested bool `json:"requested,omitempty"`
	// Started and Completed are when.
	// +optional
	Started *metav1.Time `json:"started,omitempty"`
	// +optional
	Completed *metav1.Time `json:"completed,omitempty"`
}

// VirtualMachineOperation starts, stops, restarts or migrates a VM, as KubeVirt's own API does, and says what becomes of that.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=vmop
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.spec.virtualMachine`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Progress",type=integer,JSONPath=`.status.progress`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.spec.targetNode`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineOperation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec VirtualMachineOperationSpec `json:"spec"`
	// +optional
	Status VirtualMachineOperationStatus `json:"status,omitempty"`
}

// VirtualMachineOperationList is a list of VirtualMachineOperations.
//
// +kubebuilder:object:root=true
type VirtualMachineOperationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VirtualMachineOperation `json:"items"`
}
