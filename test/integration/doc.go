// Package integration tests the controller on a real API server, real OVN databases and a real northd, without nodes. Each test has a world of its own, and mostly waits: they run
// beside each other, those aside that measure times.
package integration
