// Package upgrade holds a test of what an operator does who changes Godwit's version under running pods and VMs, there and back, as docs/install.md has it. The other version is built from the
// repository's history.
package upgrade
