// Package integration tests the controller on a real API server, real OVN databases and a real northd, without nodes.
package integration
