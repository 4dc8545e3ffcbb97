package controller

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/migration"
)

type metrics struct {
	migrations             *prometheus.CounterVec
	prepared, interruption prometheus.Histogram
	stages                 *prometheus.HistogramVec
	policyProblems         *prometheus.CounterVec
	serviceProblems        *prometheus.CounterVec
	claimsUndone           *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		migrations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_migrations_total", Help: "Live migrations that are over, by result and the reason of their last phase.",
		}, []string{"result", "reason"}),
		prepared: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "godwit_migration_prepare_duration_seconds",
			Help:    "Time from seeing that a migration's target pod has a node to the northbound database asking for both chassis.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "godwit_migration_stage_duration_seconds",
			Help:    "Time that the stages of live migrations took that succeeded: transfer (prepared to activated), commit (activated to one chassis), completion (until KubeVirt called it over).",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 18),
		}, []string{"stage"}),
		interruption: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "godwit_migration_interruption_seconds",
			Help:    "Time between a VM's last frame on the source and its first on the target, of migrations that succeeded; an upper bound of the interruption.",
			Buckets: prometheus.ExponentialBuckets(0.005, 1.6, 16),
		}),
		policyProblems: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_policy_problems_total", Help: "Rules of NetworkPolicies that permit nothing because something is wrong in them, by reason, counted whenever such a policy is read.",
		}, []string{"reason"}),
		serviceProblems: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_service_problems_total", Help: "What is wrong with Services and left out of them, by reason, counted when it is found.",
		}, []string{"reason"}),
		claimsUndone: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_claims_undone_total", Help: "Claims of ports, by the node that made them, which the ports' rows do not ask for and which were undone.",
		}, []string{"node"}),
	}
	// The first of a kind is counted by those who look at increases only if there was a series before.
	for _, s := range timedStages() {
		m.stages.WithLabelValues(s.name)
	}
	m.migrations.WithLabelValues(string(v1alpha1.MigrationSucceeded), string(migration.ReasonMigrationSucceeded))
	for _, reason := range []migration.Reason{migration.ReasonMigrationFailed, migration.ReasonMigrationAborted, migration.ReasonMigrationGone, migration.ReasonTargetGone} {
		m.migrations.WithLabelValues(string(v1alpha1.MigrationFailed), string(reason))
	}
	r.MustRegister(m.claimsUndone, m.migrations, m.prepared, m.interruption, m.stages, m.policyProblems, m.serviceProblems)
	return m
}

// tellInterruption counts the interruption of a migration that has succeeded, where it is known. Of one that is on its way it is not counted: the VM may yet go on where it was.
func (m *metrics) tellInterruption(st v1alpha1.PortMigrationStatus) {
	if st.Result != v1alpha1.MigrationSucceeded || st.Interruption == nil {
		return
	}
	if ms, err := strconv.ParseFloat(st.Interruption.Milliseconds, 64); err == nil {
		m.interruption.Observe(ms / 1000)
	}
}
