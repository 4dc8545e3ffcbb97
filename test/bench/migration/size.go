package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/godwit-cni/godwit/pkg/migration"
)

// size is how many migrations there are to be.
type size struct {
	// count are Godwit's own, and as many without the switch-over's signal; baselines those of each baseline.
	count, baselines int
	// stop is for how long QEMU does not let the VM run; 0 for as long as it takes of itself.
	stop time.Duration
}

// silent are migrations without the signal: the ports are open when the VM announces itself.
const silent migration.Baseline = "no-signal"

// maxCount keeps a run within the time that it has.
const maxCount = 100

// defaults are a fifth as many of each baseline, and no odd number: a VM that goes there comes back.
func (s *size) defaults() {
	if s.baselines == 0 {
		s.baselines = max(2, s.count/10*2)
	}
}

func (s size) validate() error {
	var errs []error
	if s.count < 2 || s.count > maxCount || s.count%2 != 0 {
		errs = append(errs, fmt.Errorf("count %d: want an even number, 2 to %d: the VM goes there and back", s.count, maxCount))
	}
	if s.baselines < 2 || s.baselines > maxCount || s.baselines%2 != 0 {
		errs = append(errs, fmt.Errorf("baselines %d: want an even number, 2 to %d: the VM goes there and back", s.baselines, maxCount))
	}
	if s.stop < 0 || s.stop > maxStop {
		errs = append(errs, fmt.Errorf("stop %s: want 0 to %s", s.stop, maxStop))
	}
	return errors.Join(errs...)
}

// maxStop is well below what agents take for a failure.
const maxStop = 5 * time.Second

// kinds are all means, Godwit's own first.
func kinds() []migration.Baseline {
	return []migration.Baseline{"", silent, migration.BaselineFlip, migration.BaselineClone}
}

// pairs are the migrations there and back in their order: those of the baselines are spread evenly over Godwit's own, which is first, so that whatever changes
// while the benchmark runs changes for all.
func (s size) pairs() []migration.Baseline {
	left := map[migration.Baseline]int{"": s.count / 2, silent: s.count / 2, migration.BaselineFlip: s.baselines / 2, migration.BaselineClone: s.baselines / 2}
	of := map[migration.Baseline]int{}
	total := 0
	for kind, n := range left {
		of[kind], total = n, total+n
	}
	var all []migration.Baseline
	for len(all) < total {
		// The one that is furthest behind is next.
		var next migration.Baseline
		worst := -1.0
		for _, kind := range kinds() {
			if left[kind] == 0 {
				continue
			}
			if behind := float64(left[kind]) / float64(of[kind]); behind > worst {
				next, worst = kind, behind
			}
		}
		left[next]--
		all = append(all, next)
	}
	return all
}

// title names a means to people.
func title(kind migration.Baseline) string {
	switch kind {
	case migration.BaselineFlip:
		return "flip at success"
	case migration.BaselineClone:
		return "clone, no strategy"
	case silent:
		return "Godwit, no signal"
	}
	return "Godwit"
}
