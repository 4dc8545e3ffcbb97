package migration

import "github.com/godwit-cni/godwit/pkg/api/v1alpha1"

// Baseline is a simpler way to move a VM's ports than Godwit's, which make bench-migration puts beside it. The zero value is none: Godwit's own.
type Baseline string

// The baselines. Neither is for a cluster that anybody uses.
const (
	// BaselineFlip asks for the source alone until KubeVirt calls the migration a success, and then for the target: what a network does that knows nothing of
	// migrations but their end.
	BaselineFlip Baseline = "flip"
	// BaselineClone asks for source and target without an activation strategy: frames for the VM reach both, and nothing is blocked.
	BaselineClone Baseline = "clone"
)

// AnnotationBaseline of a VMI names its Baseline. It is obeyed only where a hidden flag of the controller says so.
const AnnotationBaseline = "lab.godwit.dev/baseline"

// ReasonBaseline is the reason of a VM that BaselineFlip keeps on the source, in phase Settled.
const ReasonBaseline Reason = "Baseline"

// strategy is the activation strategy of a pair.
func (b Baseline) strategy() v1alpha1.Activation {
	if b == BaselineClone {
		return v1alpha1.ActivationNone
	}
	return v1alpha1.ActivationRARP
}
