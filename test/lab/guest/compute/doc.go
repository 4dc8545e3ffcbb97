// Package compute is a launcher: it plumbs its pod, runs one QEMU, migrates it, and does what package guest's client asks for. It ends with its VM.
package compute
