package controller

import (
	"context"
	"strings"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// whereabouts is what a Port's phase follows from.
type whereabouts struct {
	// requested is the row's requested-chassis; chassis is the one that has claimed the port, empty if none has.
	requested string
	chassis   ident.ChassisName
	// inUse: there is a VMI that uses the Port, and has not ended.
	inUse bool
}

// locate finds out where a port is. The flag "up" plays no part: it goes down for a moment whenever a migration is committed.
func (r *portReconciler) locate(ctx context.Context, row portRow) (whereabouts, error) {
	w := whereabouts{requested: row.options[ident.OptionRequestedChassis]}
	binding, err := r.sb.Binding(ctx, row.name)
	if err != nil || binding == nil || binding.Chassis == nil {
		return w, err
	}
	names, err := r.sb.Chassis(ctx)
	w.chassis = names[*binding.Chassis]
	return w, err
}

// phase is for people to read; before is the last one. A port that was attached stays so while its chassis changes.
func (w whereabouts) phase(before v1alpha1.PortPhase) (phase v1alpha1.PortPhase, node string) {
	main, additional, _ := strings.Cut(w.requested, ",")
	switch {
	case main == "" || main == string(ident.NoChassis):
		if w.inUse {
			return v1alpha1.PortBound, ""
		}
		return v1alpha1.PortReserved, ""
	case additional != "":
		return v1alpha1.PortMigrating, main
	case string(w.chassis) == main, before == v1alpha1.PortAttached, before == v1alpha1.PortMigrating:
		return v1alpha1.PortAttached, main
	}
	return v1alpha1.PortBound, ""
}
