package kubectl

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// taken: another Port has the interface that a Port is for. It has no row, and says nothing of the VM.
func taken(p *v1alpha1.Port) bool {
	ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && ready.Reason == v1alpha1.ReasonTargetTaken
}

// portsOf are a VM's, of those of its namespace: that on the pod network first, then the oldest, and in the end those whose interface another has.
func portsOf(all []v1alpha1.Port, vm string) []v1alpha1.Port {
	own := slices.DeleteFunc(slices.Clone(all), func(p v1alpha1.Port) bool { return p.Spec.Target.Name != vm })
	rank := func(p *v1alpha1.Port) int {
		switch {
		case taken(p):
			return 2
		case p.Spec.Target.Network != ident.DefaultNetwork:
			return 1
		}
		return 0
	}
	slices.SortFunc(own, func(a, b v1alpha1.Port) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return own
}

// interfacesOf are the Ports that a VM's interfaces have, one each, in that order.
func interfacesOf(all []v1alpha1.Port, vm string) []v1alpha1.Port {
	seen := map[string]bool{}
	return slices.DeleteFunc(portsOf(all, vm), func(p v1alpha1.Port) bool {
		before := seen[p.Spec.Target.Network]
		seen[p.Spec.Target.Network] = true
		return before
	})
}
