package migration

import (
	"slices"
	"time"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// Phase is where a VM is in the course of its migrations.
type Phase string

// The phases. docs/migration.md tables their evidence and what is written in each.
const (
	// Stopped: no live launcher. The ports ask for ident.NoChassis.
	Stopped Phase = "Stopped"
	// Settled: one launcher carries the VM. The ports ask for its chassis.
	Settled Phase = "Settled"
	// Prepared: the ports ask for source and target; the target is blocked until the VM announces itself there, or its agent opens it.
	Prepared Phase = "Prepared"
	// Activated: as Prepared, and the target's ports are open: the VM has announced itself there, or is stopped on the source.
	Activated Phase = "Activated"
	// Committed: the VM runs on the target. The ports ask for the target's chassis only.
	Committed Phase = "Committed"
	// RolledBack: a prepared migration came to nothing. The ports ask for the source's chassis only.
	RolledBack Phase = "RolledBack"
	// PostCopy: the VM runs on the target while its memory still comes from the source: there is no way back.
	PostCopy Phase = "PostCopy"
	// Unclear: what is seen contradicts itself. Nothing is changed.
	Unclear Phase = "Unclear"
)

// Reason says why Decide chose a phase: one word, for conditions, events and metrics.
type Reason string

// Reasons, by the phase that they belong to.
const (
	// Stopped
	ReasonNoVMI               Reason = "NoVMI"
	ReasonVMIFinished         Reason = "VMIFinished"
	ReasonNoLauncher          Reason = "NoLauncher"
	ReasonLauncherUnscheduled Reason = "LauncherUnscheduled"
	// Settled
	ReasonOneLauncher       Reason = "OneLauncher"
	ReasonChassisMissing    Reason = "ChassisMissing"    // the launcher's node has no chassis yet; nobody can claim the ports until it has
	ReasonTargetUnscheduled Reason = "TargetUnscheduled" // a migration is under way; its target pod has no node
	ReasonNorthdBehind      Reason = "NorthdBehind"      // the southbound database still has what the ports asked for before
	ReasonMigrationUnseen   Reason = "MigrationUnseen"   // there is a target pod, its migration was not seen yet, or is gone
	ReasonMigrationEnded    Reason = "MigrationEnded"    // the migration failed before its ports were prepared
	ReasonPostCopyLost      Reason = "PostCopyLost"      // the target ended in post-copy: the VM is lost, its VMI will say so
	ReasonNodeGone          Reason = "NodeGone"          // there is another launcher, whose node is gone: see Snapshot.Fenced
	// Prepared
	ReasonTargetScheduled Reason = "TargetScheduled"
	ReasonNotActivated    Reason = "NotActivated" // the VM runs on the target, which has not been activated
	ReasonSourceGone      Reason = "SourceGone"   // the source ended, and it is not known yet whether the VM arrived
	// Activated, PostCopy
	ReasonTargetActivated Reason = "TargetActivated"
	ReasonPostCopyRunning Reason = "PostCopyRunning"
	ReasonPostCopyFailed  Reason = "PostCopyFailed"
	// Committed
	ReasonMigrationSucceeded Reason = "MigrationSucceeded"
	ReasonTargetReady        Reason = "TargetReady"
	ReasonActivationOverdue  Reason = "ActivationOverdue" // the VM runs on the target since activationGrace, which was not activated
	ReasonSourceFinished     Reason = "SourceFinished"
	// RolledBack
	ReasonMigrationFailed  Reason = "MigrationFailed"
	ReasonMigrationAborted Reason = "MigrationAborted"
	ReasonMigrationGone    Reason = "MigrationGone"
	ReasonTargetGone       Reason = "TargetGone"
	// Unclear
	ReasonTooManyLaunchers Reason = "TooManyLaunchers"
	ReasonNoTarget         Reason = "NoTarget" // two live launchers, and it cannot be told which is the target
	ReasonUIDMismatch      Reason = "UIDMismatch"
	ReasonContradiction    Reason = "Contradiction" // the migration has both succeeded and failed
	ReasonUnknownChassis   Reason = "UnknownChassis"
	ReasonSameNode         Reason = "SameNode"
)

// activationGrace is how long after the target's domain became ready a target that was not activated is committed all the same: 2 s. KubeVirt reports
// success 0.7 s after readiness, which commits at once; only when virt-controller is away does the grace matter. The two clocks are of
// different machines and the timestamp is in whole seconds; committing early is harmless, since the VM runs there.
const activationGrace = 2 * time.Second

// How soon to look again when no event may come. Each is a safety net below the watches.
const (
	requeueNorthd  = time.Second
	requeueUnclear = 5 * time.Second
)

// Env is what Decide knows besides the snapshot.
type Env struct {
	// Now is the present time. Only activationGrace depends on it.
	Now time.Time
	// Chassis are the chassis that the southbound database knows. OVN skips the name of any other without a word, which would make the second
	// of a pair the main one.
	Chassis map[ident.ChassisName]bool
	// Baseline is set by benchmarks alone.
	Baseline Baseline
}

// Stamp names a migration in a row. The zero value is none.
type Stamp struct {
	Migration      string // UID of the VirtualMachineInstanceMigration
	Source, Target ident.ChassisName
}

// PortState is the part of a row that this package decides.
type PortState struct {
	// Requested is options:requested-chassis: "chassis", or "main,additional".
	Requested string
	// Strategy is options:activation-strategy; empty means that the key is absent. Nothing but v1alpha1.ActivationRARP is written: a list ("rarp,garp,na") blocks nothing
	// at all before OVN 25.09, and from then on would let an announcement of the pod's own kernel activate the port before the VM is there.
	Strategy v1alpha1.Activation
	// Stamp is in external_ids; zero means that its keys are absent.
	Stamp Stamp
}

// PortDecision is what one row must be.
type PortDecision struct {
	Name    ident.PortName
	Network string
	// Observed is what the decision was made from: the transaction waits for it.
	Observed PortState
	// Want is what the row must be.
	Want PortState
}

// Changed says whether the row must be written.
func (p PortDecision) Changed() bool { return p.Observed != p.Want }

// Attach is the permission for a launcher pod to plug its interfaces in: the rows that it needs ask for its chassis. It is for the pod's
// identity annotation; a permission is given once and not taken back: OVN refuses a pod whose chassis is not asked for any more.
type Attach struct {
	Pod, PodUID string
	Chassis     ident.ChassisName
	// Migration is the UID of the migration that made the pod, empty for a VM's first launcher.
	Migration string
	// Activation is how the port begins on the chassis: v1alpha1.ActivationLater with BaselineFlip, else as the rows' strategy says.
	Activation v1alpha1.Activation
}

// Decision is what Decide found. Equal snapshots and environments make equal decisions.
type Decision struct {
	Phase  Phase
	Reason Reason
	// Message says the same to an operator: what was seen, on which objects, what to do. It changes only when Reason or the objects do.
	Message string
	// Migration is the UID of the migration that the phase is about, Source and Target its launchers; zero when it is about none.
	Migration      string
	Source, Target Launcher
	// Ports has every row of the snapshot, in order of network. Those that are Changed are written in one transaction.
	Ports []PortDecision
	// Attach names the launchers that may attach now.
	Attach []Attach
	// RequeueAfter is when to decide again though nothing happened; zero is never.
	RequeueAfter time.Duration
}

// ByAbsence says whether a decision takes ports from a node because something is not there: the VMI, or a launcher with a node; of a migration that goes on the target's pod, its node, or the migration itself.
// Of a copy of the API that is behind that says nothing: what is missing may have been made since.
func (d Decision) ByAbsence() bool {
	switch d.Reason {
	case ReasonTargetGone, ReasonMigrationGone, ReasonPostCopyLost:
	default:
		if d.Phase != Stopped {
			return false
		}
	}
	return slices.ContainsFunc(d.Ports, PortDecision.Changed)
}
