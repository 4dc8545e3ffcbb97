package controller

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	migrations             *prometheus.CounterVec
	prepared, interruption prometheus.Histogram
	policyProblems         *prometheus.CounterVec
	serviceProblems        *prometheus.CounterVec
	claimsUndone           *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		migrations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "godwit_migrations_total", Help: "Live migrations that are over, by result.",
		}, []string{"result"}),
		prepared: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "godwit_migration_prepare_duration_seconds",
			Help:    "Time from seeing that a migration's target pod has a node to the northbound database asking for both chassis.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		interruption: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "godwit_migration_interruption_seconds",
			Help:    "Time between a VM's last frame on the source and its first on the target; an upper bound of the interruption.",
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
	r.MustRegister(m.claimsUndone, m.migrations, m.prepared, m.interruption, m.policyProblems, m.serviceProblems)
	return m
}
