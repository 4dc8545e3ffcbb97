package conntrack

import "time"

// Passes are repeated looks at a zone, of which each tells a target only what the earlier ones have not: a zone of 50,000 connections of which none changes is told once. The zero value
// has told nothing. Not safe for concurrent use.
type Passes struct {
	// told are the entries that the target has, as it has them but for the timeout, and when each ends there if nothing comes.
	told map[Entry]time.Time
}

// Due returns those of a zone's entries that the target must be told at a time: what is new, what has changed, and what would end there long before it does here, because only here something
// comes. They count as told: if that fails, or the target refuses some that it could take later (ReasonConflict, ReasonTableFull), begin with new Passes. Entries that the zone has no more
// are forgotten: on the target they end by their timeout.
func (p *Passes) Due(entries []Entry, now time.Time) []Entry {
	next := make(map[Entry]time.Time, len(entries))
	var due []Entry
	for _, e := range entries {
		key, reason := e.moved(e.Zone)
		if reason != "" {
			key = e // the target will say the same, once
		}
		timeout := key.Timeout
		key.Timeout = 0
		ends, ok := p.told[key]
		if !ok || ends.Sub(now) < timeout/2 {
			due = append(due, e)
			ends = now.Add(timeout)
		}
		next[key] = ends
	}
	p.told = next
	return due
}
