package service

import "fmt"

// Reason is a word for a Problem, for the event that tells of it.
type Reason string

// The reasons of Problems.
const (
	// ReasonInvalid: something in the Service or its EndpointSlices cannot be read.
	ReasonInvalid Reason = "InvalidService"
	// ReasonTaken: another Service, which is older, has the address and port.
	ReasonTaken Reason = "AddressTaken"
	// ReasonReserved: the address is one of the network's own.
	ReasonReserved Reason = "AddressReserved"
	// ReasonTooLarge: there is more of the Service than one may come to.
	ReasonTooLarge Reason = "ServiceTooLarge"
)

// Problem is what is wrong with a Service. What it is about is left out; the rest works.
type Problem struct {
	Reason Reason
	// Message is for the Service's owner: what is wrong, and what to do.
	Message string
}

func problem(reason Reason, format string, args ...any) Problem {
	return Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}
}
