package controller

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func TestInterruption(t *testing.T) {
	at := func(ms int) *metav1.MicroTime {
		m := metav1.NewMicroTime(time.UnixMilli(int64(ms)))
		return &m
	}
	one, other := v1alpha1.Clock{BootID: "a", Synchronized: true, MaxErrorMicroseconds: 1000}, v1alpha1.Clock{BootID: "b", Synchronized: true, MaxErrorMicroseconds: 500}
	for name, c := range map[string]struct {
		source, target v1alpha1.Observation
		result         v1alpha1.MigrationResult
		want           time.Duration // negative: cannot be told
		uncertainty    time.Duration
	}{
		"one machine":         {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(130), FirstFrame: at(131)}, "", 30 * time.Millisecond, 0},
		"two machines":        {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: other, Announced: at(130)}, "", 30 * time.Millisecond, 1500 * time.Microsecond},
		"a clock drifts":      {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Announced: at(130)}, "", 30 * time.Millisecond, -1},
		"the agent announced": {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(230), AnnouncedByAgent: true, FirstFrame: at(240)}, "", 140 * time.Millisecond, 0},
		"heard too early":     {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(230), AnnouncedByAgent: true, FirstFrame: at(120)}, "", 130 * time.Millisecond, 0},
		"opened by the signal, heard before its RARP": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105), Announced: at(231), FirstFrame: at(230)}, "", 130 * time.Millisecond, 0,
		},
		"opened by the signal, announces nothing": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105), FirstFrame: at(230)}, "", 130 * time.Millisecond, 0,
		},
		"open before it was heard": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105), Unblocked: at(107), Announced: at(130)}, "", 30 * time.Millisecond, 0,
		},
		"announced, and open much later": {
			v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(130), FirstFrame: at(131), Unblocked: at(4100)}, "", 4 * time.Second, 0,
		},
		"opened by the signal, not heard": {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Opened: at(105)}, "", -1, 0},
		"nothing said before":             {v1alpha1.Observation{Clock: one}, v1alpha1.Observation{Clock: one, Announced: at(130)}, "", -1, 0},
		"nothing seen after":              {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one}, "", -1, 0},
		"source after target":             {v1alpha1.Observation{Clock: one, LastFrame: at(200)}, v1alpha1.Observation{Clock: one, Announced: at(130)}, "", -1, 0},
		"failed":                          {v1alpha1.Observation{Clock: one, LastFrame: at(100)}, v1alpha1.Observation{Clock: one, Announced: at(130)}, v1alpha1.MigrationFailed, -1, 0},
	} {
		d, u, ok := interruption(v1alpha1.PortMigrationStatus{Source: &c.source, Target: &c.target, Result: c.result})
		if ok != (c.want >= 0) || ok && (d != c.want || u != c.uncertainty) {
			t.Errorf("%s: %s ± %s, %v; want %s ± %s", name, d, u, ok, c.want, c.uncertainty)
		}
	}
}
