package migration

import (
	"fmt"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// migration is what is known of a migration; only its UID when nothing is.
func (s Snapshot) migration(uid string) Migration {
	for _, m := range s.Migrations {
		if m.UID == uid {
			return m
		}
	}
	return Migration{UID: uid}
}

func (m Migration) ended() bool { return m.Succeeded || m.Failed }

func (m Migration) runs() bool { return m.Seen && !m.ended() }

// label names a migration to an operator.
func (m Migration) label() string {
	if m.Name == "" {
		return m.UID
	}
	return m.Name
}

// failure says why a prepared migration came to nothing.
func (m Migration) failure() (Reason, string) {
	switch {
	case m.Aborted:
		return ReasonMigrationAborted, fmt.Sprintf("migration %s was aborted", m.label())
	case m.Failed:
		return ReasonMigrationFailed, fmt.Sprintf("migration %s failed", m.label())
	case !m.Seen:
		return ReasonMigrationGone, fmt.Sprintf("migration %s is gone", m.label())
	}
	return ReasonTargetGone, fmt.Sprintf("migration %s: the target pod has gone or finished", m.label())
}

// pairOf is the value of requested-chassis while a port may be on two chassis.
func pairOf(source, target Launcher) string {
	return string(source.Chassis) + "," + string(target.Chassis)
}

func isPair(requested string) bool {
	main, additional, _ := strings.Cut(requested, ",")
	return main != "" && additional != ""
}

// Pair says whether the port may be on two chassis, because its VM is on its way.
func (s PortState) Pair() bool { return isPair(s.Requested) }

func stampOf(source, target Launcher) Stamp {
	return Stamp{Migration: target.Job, Source: source.Chassis, Target: target.Chassis}
}

// pairStamp is the stamp of the ports that are a pair; false if none is.
func (s Snapshot) pairStamp() (Stamp, bool) {
	for _, p := range s.Ports {
		if isPair(p.State.Requested) {
			return p.State.Stamp, true
		}
	}
	return Stamp{}, false
}

// stampedBy says whether a migration has ever asked for a port of this VM.
func (s Snapshot) stampedBy(uid string) bool {
	for _, p := range s.Ports {
		if p.State.Stamp.Migration == uid && uid != "" {
			return true
		}
	}
	return false
}

// committedTo says whether the ports were given to the target of its migration already. What was seen since may be older than that decision, which is
// therefore held until there is proof of the contrary. Ports that the target alone carries are its own from the preparation on, and tell nothing.
func (s Snapshot) committedTo(source, target Launcher) bool {
	if source.Chassis == target.Chassis {
		return false // the row says nothing then
	}
	found := false
	for _, p := range s.Ports {
		if !source.carries(p.Network) || !target.carries(p.Network) {
			continue
		}
		if p.State.Requested != string(target.Chassis) || p.State.Stamp != stampOf(source, target) {
			return false
		}
		found = true
	}
	return found
}

// isPrepared: the port asks for both, for this very migration. A pair that an earlier migration left behind may have been activated by that one.
func isPrepared(p Port, source, target Launcher) bool {
	return p.State.Requested == pairOf(source, target) && p.State.Stamp == stampOf(source, target)
}

// prepared says whether all ports that both launchers carry are prepared for them, and whether the target was activated for all of them. Without such
// a port there is nothing to prepare, and nothing that could be activated.
func (s Snapshot) prepared(source, target Launcher) (prepared, activated bool) {
	shared, blocked := 0, 0
	for _, p := range s.Ports {
		if !source.carries(p.Network) || !target.carries(p.Network) {
			continue
		}
		if !isPrepared(p, source, target) {
			return false, false
		}
		shared++
		if !p.Synced || !slices.Contains(p.Activated, target.Chassis) {
			blocked++
		}
	}
	return true, shared > 0 && blocked == 0
}

// activatedFor says whether every port that is a pair was activated on a chassis.
func (s Snapshot) activatedFor(c ident.ChassisName) bool {
	for _, p := range s.Ports {
		if isPair(p.State.Requested) && (!p.Synced || !slices.Contains(p.Activated, c)) {
			return false
		}
	}
	return true
}

// pairable says whether all ports that both launchers carry may become the pair now: those that are not yet ask for one chassis, northd knows, and no
// activation is left over. OVN 23.03 clears it one northd round late; a target that is named before that is not blocked, and its paused guest
// drowns in stale frames. All NICs are prepared together.
func (s Snapshot) pairable(source, target Launcher) bool {
	for _, p := range s.Ports {
		if !source.carries(p.Network) || !target.carries(p.Network) || isPrepared(p, source, target) {
			continue
		}
		if isPair(p.State.Requested) || !p.Synced || p.Additional || len(p.Activated) > 0 {
			return false
		}
	}
	return true
}

// want is what a verdict makes of a port.
func (v verdict) want(p Port) PortState {
	switch v.aim {
	case keep:
		return kept(p.State)
	case none:
		return PortState{Requested: string(ident.NoChassis)}
	case pair:
		return v.paired(p)
	case await:
		if isPrepared(p, v.source, v.target) {
			return v.paired(p)
		}
	}
	return v.alone(p)
}

// kept is a row as it is, but for a chassis that is empty: with the option absent, any leftover iface-id claims the port.
func kept(s PortState) PortState {
	s.Requested = strings.Join(strings.FieldsFunc(s.Requested, func(r rune) bool { return r == ',' }), ",")
	if s.Requested == "" {
		return PortState{Requested: string(ident.NoChassis), Stamp: s.Stamp}
	}
	return s
}

// paired: a NIC that is being plugged in is on the target only, and one that is being unplugged on the source only.
func (v verdict) paired(p Port) PortState {
	stamp := stampOf(v.source, v.target)
	switch onSource, onTarget := v.source.carries(p.Network), v.target.carries(p.Network); {
	case onSource && onTarget:
		return PortState{Requested: pairOf(v.source, v.target), Strategy: v.baseline.strategy(), Stamp: stamp}
	case onSource:
		return PortState{Requested: string(v.source.Chassis), Stamp: stamp}
	case onTarget:
		return PortState{Requested: string(v.target.Chassis), Stamp: stamp}
	}
	return PortState{Requested: string(ident.NoChassis), Stamp: stamp}
}

// alone: the port is the holder's. The stamp stays as the record of the last migration, and is renewed by one that ends with both launchers live. A
// wait for northd stamps too: the write is what makes northd look at the port once more.
func (v verdict) alone(p Port) PortState {
	w := PortState{Requested: string(ident.NoChassis), Stamp: p.State.Stamp}
	if v.holder.carries(p.Network) {
		w.Requested = string(v.holder.Chassis)
	}
	if v.target.Job != "" && v.source.Chassis != "" && (v.phase != Settled || v.aim == await) {
		w.Stamp = stampOf(v.source, v.target)
	}
	return w
}

// attach names the launchers whose chassis the rows ask for, as they were observed and as they are going to be: what is not written yet is
// no permission, and what is about to be taken away neither.
func attach(v verdict, ports []PortDecision) []Attach {
	candidates := []Launcher{v.holder}
	if v.aim == pair || v.aim == await {
		candidates = []Launcher{v.source, v.target}
	}
	var out []Attach
	for _, l := range candidates {
		if v.aim != keep && v.aim != none && mayAttach(l, ports) {
			out = append(out, Attach{Pod: l.Name, PodUID: l.UID, Chassis: l.Chassis, Migration: l.Job, Activation: activationFor(l, ports)})
		}
	}
	if v.aim == later {
		t := v.target
		out = append(out, Attach{Pod: t.Name, PodUID: t.UID, Chassis: t.Chassis, Migration: t.Job, Activation: v1alpha1.ActivationLater})
	}
	return out
}

// activationFor is how the launcher's chassis begins: as an additional one by the rows' strategy, as the main one by none.
func activationFor(l Launcher, ports []PortDecision) v1alpha1.Activation {
	for _, p := range ports {
		if main, _, _ := strings.Cut(p.Want.Requested, ","); l.carries(p.Network) && main != string(l.Chassis) {
			return p.Want.Strategy
		}
	}
	return v1alpha1.ActivationNone
}

// NICs are the networks by which a launcher may attach, and how each begins there; nil if it may not.
func (d Decision) NICs(l Launcher) map[string]v1alpha1.Activation {
	i := slices.IndexFunc(d.Attach, func(a Attach) bool { return a.PodUID == l.UID })
	if i < 0 {
		return nil
	}
	out := map[string]v1alpha1.Activation{}
	for _, p := range d.Ports {
		main, _, _ := strings.Cut(p.Want.Requested, ",")
		switch {
		case !l.carries(p.Network):
		case d.Attach[i].Activation == v1alpha1.ActivationLater:
			out[p.Network] = v1alpha1.ActivationLater
		case !asks(p.Observed, l) || !asks(p.Want, l):
		case main == string(l.Chassis):
			out[p.Network] = v1alpha1.ActivationNone
		default:
			out[p.Network] = p.Want.Strategy
		}
	}
	return out
}

func mayAttach(l Launcher, ports []PortDecision) bool {
	found := false
	for _, p := range ports {
		if !l.carries(p.Network) {
			continue
		}
		if !asks(p.Observed, l) || !asks(p.Want, l) {
			return false
		}
		found = true
	}
	return found
}

// asks says whether a row asks for a launcher's chassis: as the main one, or as the additional one for the migration that made the pod.
func asks(p PortState, l Launcher) bool {
	main, additional, _ := strings.Cut(p.Requested, ",")
	return main == string(l.Chassis) || additional == string(l.Chassis) && p.Stamp.Migration == l.Job
}
