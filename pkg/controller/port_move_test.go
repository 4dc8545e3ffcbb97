package controller

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// Of several Ports for one interface the one that has the row is the VM's, or the oldest, in whatever order they are told.
func TestHolders(t *testing.T) {
	port := func(name string, minute int) v1alpha1.Port {
		return v1alpha1.Port{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Unix(int64(minute)*60, 0))},
			Spec:       v1alpha1.PortSpec{Target: v1alpha1.PortTarget{Name: "vm", Network: "default"}},
		}
	}
	old, used, young := port("old", 1), port("used", 2), port("young", 3)
	other := port("other", 0)
	other.Spec.Target.Network = "blue"
	name := rowName(&old)
	for what, c := range map[string]struct {
		row  string
		want string
	}{"it has the row": {"used", "used"}, "there is no row": {"", "old"}, "the row is of one that is gone": {"gone", "old"}} {
		rows := map[ident.PortName]*nbdb.LogicalSwitchPort{}
		if c.row != "" {
			rows[name] = &nbdb.LogicalSwitchPort{ExternalIDs: map[string]string{ident.KeyUID: c.row}}
		}
		ports := []v1alpha1.Port{old, used, young, other}
		for range 2 {
			if got := holders(ports, rows); len(got) != 2 || got[name].Name != c.want || got[rowName(&other)].Name != "other" {
				t.Errorf("%s: %v, want %s", what, got, c.want)
			}
			slices.Reverse(ports)
		}
	}
}
