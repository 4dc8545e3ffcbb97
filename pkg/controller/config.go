package controller

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/godwit-cni/godwit/pkg/ipam"
	"github.com/godwit-cni/godwit/pkg/ovn"
	"github.com/godwit-cni/godwit/pkg/pki"
	"github.com/godwit-cni/godwit/pkg/policy"
	"github.com/godwit-cni/godwit/pkg/topology"
)

// DefaultSubnet is the Subnet of the namespaces that no other Subnet selects.
const DefaultSubnet = "default"

// Bounds of Config.HandoverGrace. TCP sends again what was lost while a VM moved within a second or two; an hour is as good as no policy.
const (
	minHandoverGrace = time.Second
	maxHandoverGrace = time.Hour
)

// Config is what godwit-controller is told by its flags.
type Config struct {
	// NBEndpoints are the northbound servers in ovsdb(7) form. With several, the raft leader is used.
	NBEndpoints []string
	// SBEndpoints are the southbound servers, of which the bindings of VMs' ports and the names of chassis are read.
	SBEndpoints []string
	// TLS are the controller's certificates for endpoints that are reached by TLS; nil without.
	TLS *pki.Files
	// Issuing: this process also makes the certificates, and Run is not the one who tells when they expire.
	Issuing bool
	// DefaultCIDRs are the ranges of the Subnet "default", which is created if it does not exist. At most one per family.
	DefaultCIDRs []string
	// JoinCIDRs are the ranges between the logical router and the nodes. At most one per family.
	JoinCIDRs []string
	// Namespace holds the leader election lease.
	Namespace string
	// MetricsAddress and HealthAddress are HOST:PORT to listen on; "0" listens nowhere.
	MetricsAddress, HealthAddress string
	// LeaderElection is off only in tests.
	LeaderElection bool
	// PodWorkers is the number of pods that are reconciled at once.
	PodWorkers int
	// KeepMigrations is how many PortMigrations that are over are kept of each VM.
	KeepMigrations int
	// OTLPEndpoint is where the leader sends a trace of each migration, http://HOST:PORT of an OTLP receiver; empty: nowhere.
	OTLPEndpoint string
	// HandoverRules lets the connections of a VM that migrates, and that NetworkPolicies isolate, go on where it arrives; HandoverGrace is for how long after it did.
	HandoverRules bool
	HandoverGrace time.Duration
	// Services lets OVN balance what pods send to Services. Off, somebody else does, such as kube-proxy.
	Services bool
	// Baselines obeys the annotation migration.AnnotationBaseline of VMIs. Only make bench-migration wants that: such VMs are moved worse than they could be.
	Baselines bool
	// Registerer receives the controller's own metrics.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Defaults returns the configuration of an installation that says nothing.
func Defaults() Config {
	return Config{
		DefaultCIDRs:   []string{"10.244.0.0/16"},
		JoinCIDRs:      []string{"100.64.0.0/16"},
		Namespace:      "godwit-system",
		MetricsAddress: ":9477",
		HealthAddress:  ":9478",
		LeaderElection: true,
		PodWorkers:     64,
		KeepMigrations: 10,
		HandoverRules:  true,
		HandoverGrace:  policy.HandoverGrace,
		Services:       true,
		Registerer:     ctrlmetrics.Registry,
	}
}

// Validate reports every error in c.
func (c Config) Validate() error {
	var errs []error
	if len(c.NBEndpoints) == 0 {
		errs = append(errs, errors.New("--nb-remote: no northbound endpoint given"))
	}
	if len(c.SBEndpoints) == 0 {
		errs = append(errs, errors.New("--sb-remote: no southbound endpoint given"))
	}
	const hint = "--ovn-tls-dir DIR, or --ovn-issuer"
	if err := ovn.CheckEndpoints(c.NBEndpoints, c.TLS, hint); err != nil {
		errs = append(errs, fmt.Errorf("--nb-remote: %w", err))
	}
	if err := ovn.CheckEndpoints(c.SBEndpoints, c.TLS, hint); err != nil {
		errs = append(errs, fmt.Errorf("--sb-remote: %w", err))
	}
	pods, err := ipam.ParseSpec(c.DefaultCIDRs, nil, nil)
	if err != nil {
		errs = append(errs, fmt.Errorf("--default-cidrs: %w", err))
	}
	join, err := c.join()
	if err != nil {
		errs = append(errs, fmt.Errorf("--join-cidrs: %w", err))
	}
	if x, y, overlap := ipam.Overlap(pods.CIDRs, join.CIDRs); overlap {
		errs = append(errs, fmt.Errorf("--default-cidrs %s overlaps --join-cidrs %s", x, y))
	}
	for _, c := range pods.CIDRs {
		if !hasFamily(join.CIDRs, c) {
			errs = append(errs, fmt.Errorf("--default-cidrs has %s but --join-cidrs has no range of its family: such pods could not reach their node", c))
		}
	}
	if c.PodWorkers < 1 {
		errs = append(errs, fmt.Errorf("--pod-workers %d: want at least 1", c.PodWorkers))
	}
	if _, err := newTracer(c.OTLPEndpoint, c.Logger); err != nil {
		errs = append(errs, err)
	}
	if c.KeepMigrations < 1 {
		errs = append(errs, fmt.Errorf("--keep-migrations %d: want at least 1", c.KeepMigrations))
	}
	if c.HandoverGrace < minHandoverGrace || c.HandoverGrace > maxHandoverGrace {
		errs = append(errs, fmt.Errorf("--handover-grace %s: want %s to %s (--handover-rules=false for none)", c.HandoverGrace, minHandoverGrace, maxHandoverGrace))
	}
	return errors.Join(errs...)
}

// join is the join network without the address that is the next hop of the default routes.
func (c Config) join() (ipam.Spec, error) {
	cidrs, err := ipam.ParseCIDRs(c.JoinCIDRs)
	if err != nil {
		return ipam.Spec{}, err
	}
	var exclude []string
	for _, p := range cidrs {
		exclude = append(exclude, topology.EgressPlaceholder(p).String())
	}
	return ipam.ParseSpec(c.JoinCIDRs, nil, exclude)
}

func hasFamily(cidrs []netip.Prefix, of netip.Prefix) bool {
	for _, c := range cidrs {
		if c.Addr().Is4() == of.Addr().Is4() {
			return true
		}
	}
	return false
}
