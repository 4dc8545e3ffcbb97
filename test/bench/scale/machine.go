package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/test/bench/central"
)

// machine is how much processor time was used so far: by this process and what it started, and by all.
type machine struct {
	at        time.Time
	ours, all time.Duration
}

func readMachine() (machine, error) {
	m := machine{at: time.Now()}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, fmt.Errorf("read the machine's use: %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(first)[1:] {
		if i == 3 || i == 4 || i > 6 { // idle and waiting; what follows is steal, and guests, which are counted already
			continue
		}
		n, err := strconv.Atoi(f)
		if err != nil {
			return m, fmt.Errorf("/proc/stat: %w", err)
		}
		m.all += time.Duration(n) * central.UserHZ
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return m, err
	}
	self := strconv.Itoa(os.Getpid())
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 || f[1] != self && filepath.Base(filepath.Dir(file)) != self {
			continue
		}
		user, err1 := strconv.Atoi(f[11])
		system, err2 := strconv.Atoi(f[12])
		if err1 == nil && err2 == nil {
			m.ours += time.Duration(user+system) * central.UserHZ
		}
	}
	return m, nil
}

// others is how many cores processes that are not ours used on average since before.
func (m machine) others(before machine) float64 {
	return float64((m.all-m.ours)-(before.all-before.ours)) / float64(m.at.Sub(before.at))
}
