package policy

import "fmt"

// Reason says what kind of thing is wrong with a policy, for conditions, events and metrics.
type Reason string

// Reasons of Problems.
const (
	ReasonInvalidSelector   Reason = "InvalidSelector"
	ReasonInvalidPolicyType Reason = "InvalidPolicyType"
	ReasonInvalidPeer       Reason = "InvalidPeer"
	ReasonInvalidCIDR       Reason = "InvalidCIDR"
	ReasonExceptOutside     Reason = "ExceptOutsideCIDR"
	ReasonTooManyBlocks     Reason = "TooManyBlocks"
	ReasonTooManyPeers      Reason = "TooManyPeers"
	ReasonTooManyTerms      Reason = "TooManyTerms"
	ReasonTooManyPorts      Reason = "TooManyPorts"
	ReasonTooManyRules      Reason = "TooManyRules"
	ReasonInvalidProtocol   Reason = "InvalidProtocol"
	ReasonInvalidPort       Reason = "InvalidPort"
	ReasonInvalidEndPort    Reason = "InvalidEndPort"
	ReasonInvalidLog        Reason = "InvalidLogAnnotation"
)

// Problem is something wrong with a policy. What it is in permits nothing.
type Problem struct {
	Reason Reason
	// Field is where, as the API server would say it: "spec.ingress[0].from[1].ipBlock.cidr".
	Field string
	// Detail is what is there, what was expected, and what follows.
	Detail string
}

// Error implements error.
func (p Problem) Error() string { return fmt.Sprintf("%s: %s: %s", p.Field, p.Reason, p.Detail) }
