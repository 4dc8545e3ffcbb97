// Package guest is what runs in a launcher pod of the lab's KubeVirt stand-in, seen from outside: a client for the launcher, which plumbs the pod as
// KubeVirt's virt-handler does and runs one QEMU, and the relay that carries a migration's stream between two launchers.
//
// The order of a VM's life is
//
//	Dial, Plumb, Start                              a VM boots
//	Dial, Plumb, Incoming, NewRelay, source.Migrate  a VM moves; Leave ends the source
//	Shutdown or Kill                                it ends, and the launcher with it
//
// The launcher's process, and so the pod's container, ends with status 0 after Leave and after the guest has switched itself off, and with 1 after QEMU has
// ended in any other way.
package guest

import (
	"net/netip"
	"time"
)

// DefaultMemoryMiB is enough for the lab's guest.
const DefaultMemoryMiB = 96

// Binding is how a guest's NIC is tied to the pod's link, in KubeVirt's terms.
type Binding string

// The bindings.
const (
	// Bridge gives the guest the pod's place in the network: its addresses by DHCP, and a MAC address of the VM's.
	Bridge Binding = "bridge"
	// Masquerade hides the guest behind the pod: it has 10.0.2.2, and what it sends leaves under the pod's address. No frame of QEMU's leaves the pod. It is stood
	// in for by IPv4 only: a pod without an IPv4 address cannot have it.
	Masquerade Binding = "masquerade"
)

// NIC is one network interface of a VM.
type NIC struct {
	// Name is the network's in the VMI: "default".
	Name string `json:"name"`
	// Link is the pod's link that the CNI made; empty is eth0. A link that is plumbed already is left as it is.
	Link string `json:"link,omitempty"`
	// Binding is Bridge when empty.
	Binding Binding `json:"binding,omitempty"`
	// MAC is the guest's MAC address: of the VMI's spec or, of a migration's target, of the source (Status.NICs). Empty: with Bridge the address that the
	// CNI gave to the pod's link, with Masquerade a random one.
	MAC string `json:"mac,omitempty"`
}

// Plumbed is a NIC whose pod side is ready.
type Plumbed struct {
	NIC
	// PodMAC is the MAC address that the CNI gave to the pod's link.
	PodMAC string `json:"podMAC"`
	// Addresses are those that the CNI gave to the pod's link, link-local ones left out.
	Addresses []netip.Prefix `json:"addresses"`
	// MTU in bytes, of the pod's link.
	MTU int `json:"mtu"`
	// DHCP says that the pod has a DHCP server for the guest.
	DHCP bool `json:"dhcp"`
	// Plugged says that the VM has the NIC: it had it when it started, or was given it since.
	Plugged bool `json:"plugged"`
}

// Domain describes a VM to QEMU. Source and target of a migration must be described the same.
type Domain struct {
	// Name is shown in process lists and by the guest: KubeVirt's is NAMESPACE_NAME.
	Name string `json:"name"`
	// Hostname is the guest's; empty is "guest".
	Hostname string `json:"hostname,omitempty"`
	// UUID is the VM's firmware UUID; empty for none.
	UUID string `json:"uuid,omitempty"`
	// MemoryMiB is DefaultMemoryMiB when zero.
	MemoryMiB int `json:"memoryMiB,omitempty"`
	// Arguments are appended to the guest's kernel command line.
	Arguments string `json:"arguments,omitempty"`
}

// Incoming describes how a target receives.
type Incoming struct {
	// HoldResume keeps the VM paused on the target after all has arrived, until Resume: where a migration hangs on the target.
	HoldResume bool `json:"holdResume,omitempty"`
	// PostCopy must be set if the source may switch to post-copy.
	PostCopy bool `json:"postCopy,omitempty"`
	// Later are the NICs, by their networks' names, that the VM does not have where it comes from: they are for Plug, when it has come.
	Later []string `json:"later,omitempty"`
	// KillOn makes the launcher kill its QEMU at the first such event (of type Migration: with KillOnStatus), for migrations that fail late. Empty: never.
	KillOn       EventType       `json:"killOn,omitempty"`
	KillOnStatus MigrationStatus `json:"killOnStatus,omitempty"`
	// FailStatus is the launcher's exit status if the migration fails on the target: 0 (the pod Succeeded) and 1 (Failed) are both seen in the field.
	FailStatus int `json:"failStatus,omitempty"`
}

// Migration describes how a source sends. It must be connected to a target by a Relay.
type Migration struct {
	// Bandwidth limits the transfer, in bytes a second; zero is KubeVirt's default of no limit.
	Bandwidth int64 `json:"bandwidth,omitempty"`
	// DowntimeLimit is how long QEMU may plan to stop the VM; zero is QEMU's default of 300 ms.
	DowntimeLimit time.Duration `json:"downtimeLimit,omitempty"`
	// PostCopy allows StartPostCopy; PostCopyBandwidth limits what is not asked for by the target's faults, in bytes a second, zero for no limit.
	PostCopy          bool  `json:"postCopy,omitempty"`
	PostCopyBandwidth int64 `json:"postCopyBandwidth,omitempty"`
	// HoldBeforeSwitchover stops the migration when the VM has been stopped and before its devices are sent (status PreSwitchover) until ContinueMigration:
	// what happens to the target then is a late failure, after which the source goes on.
	HoldBeforeSwitchover bool `json:"holdBeforeSwitchover,omitempty"`
}

// State is a launcher's.
type State string

// The states.
const (
	// Idle: there is no QEMU (yet).
	Idle State = "Idle"
	// Receiving: QEMU waits for a migration, or one is arriving.
	Receiving State = "Receiving"
	// Running: the VM's processors run here.
	Running State = "Running"
	// Paused: the VM is here and its processors do not run.
	Paused State = "Paused"
	// Migrated: the VM has been sent elsewhere. Resume takes it back, if the target did not start it.
	Migrated State = "Migrated"
	// Ended: QEMU is gone; the launcher follows at once.
	Ended State = "Ended"
)

// Status is what a launcher says of itself.
type Status struct {
	State State     `json:"state"`
	NICs  []Plumbed `json:"nics,omitempty"`
	// Domain is that of Start or Incoming.
	Domain Domain `json:"domain"`
	// QEMU is its run state in QEMU's own word, empty without QEMU.
	QEMU string `json:"qemu,omitempty"`
	// Migration is the last one that went out or came in; nil if there was none.
	Migration *MigrationInfo `json:"migration,omitempty"`
}

// MigrationStatus is QEMU's word for where a migration is.
type MigrationStatus string

// Statuses of a migration.
const (
	Setup          MigrationStatus = "setup"
	Active         MigrationStatus = "active"
	PreSwitchover  MigrationStatus = "pre-switchover"
	Device         MigrationStatus = "device"
	PostCopyActive MigrationStatus = "postcopy-active"
	PostCopyPaused MigrationStatus = "postcopy-paused"
	Completed      MigrationStatus = "completed"
	Failed         MigrationStatus = "failed"
	Cancelling     MigrationStatus = "cancelling"
	Cancelled      MigrationStatus = "cancelled"
)

// MigrationInfo is what QEMU says of a migration (query-migrate). Of an incoming one only Status is set.
type MigrationInfo struct {
	Status MigrationStatus `json:"status"`
	// Total and Downtime are QEMU's own figures, in whole milliseconds; Downtime is the expected one while the migration runs.
	Total    time.Duration `json:"total"`
	Downtime time.Duration `json:"downtime"`
	// Transferred and Remaining are bytes of memory.
	Transferred int64 `json:"transferred"`
	Remaining   int64 `json:"remaining"`
	// Passes counts the rounds over the VM's memory.
	Passes int64 `json:"passes"`
	// Error is QEMU's description of a failure.
	Error string `json:"error,omitempty"`
}

// EventType is the kind of an Event.
type EventType string

// The events, the first ones being QEMU's.
const (
	// Stopped and Resumed: the VM's processors have stopped, or run.
	Stopped EventType = "STOP"
	Resumed EventType = "RESUME"
	// MigrationChanged comes with a MigrationStatus, on both sides.
	MigrationChanged EventType = "MIGRATION"
	// Off: the guest has switched itself off, or was made to.
	Off EventType = "SHUTDOWN"
	// PlumbingDone, QEMUStarted and QEMUEnded are the launcher's own. QEMUEnded has the reason in Detail.
	PlumbingDone EventType = "PLUMBED"
	QEMUStarted  EventType = "STARTED"
	QEMUEnded    EventType = "ENDED"
	// Leased: the pod's DHCP server has answered a request; Detail says what it gave.
	Leased EventType = "LEASED"
)

// Event is something that happened in a launcher.
type Event struct {
	// Seq counts from 1.
	Seq int `json:"seq"`
	// Time is when the launcher saw it, by the machine's wall clock.
	Time time.Time `json:"time"`
	// QEMU is when QEMU says that it happened, by the same clock, with microseconds; zero for the launcher's own events. It is the better time to measure by.
	QEMU   time.Time       `json:"qemu,omitzero"`
	Type   EventType       `json:"type"`
	Status MigrationStatus `json:"status,omitempty"`
	Detail string          `json:"detail,omitempty"`
}

// At is when the event happened: QEMU's time if there is one, else Time.
func (e Event) At() time.Time {
	if !e.QEMU.IsZero() {
		return e.QEMU
	}
	return e.Time
}
