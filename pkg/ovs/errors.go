package ovs

import "errors"

// Sentinel errors, for errors.Is.
var (
	// ErrUnreachable: the database did not answer in time.
	ErrUnreachable = errors.New("database not reachable")
	// ErrNoPort: there is no such port.
	ErrNoPort = errors.New("no such port")
	// ErrInterface: ovs-vswitchd could not use the interface; the text is its own.
	ErrInterface = errors.New("ovs-vswitchd reports an error")
)
