// Package migration decides which chassis may claim the ports of a VM, while it runs, while it migrates and while it is stopped. It is a pure
// state machine: Observe makes a Snapshot of what the API and OVN say, Decide says in which Phase the VM is and what its LogicalSwitchPorts must
// be. There is no I/O, clock, context or logger in it, and no memory either: all that must survive a restart is in the rows themselves.
//
// Who calls it does three things: it gives Observe everything there is (events are hints to look again, nothing more), it applies
// Decision.Ports in one transaction, guarded by a wait on PortState Observed of each, and it lets those launcher pods attach that
// Decision.Attach names. docs/migration.md describes the phases for an operator.
//
// What is written, and by nobody else:
//
//	NB Logical_Switch_Port options:requested-chassis     one chassis, or "source,target" while a migration is prepared; never empty
//	NB Logical_Switch_Port options:activation-strategy   "rarp" while two chassis are requested, else absent
//	NB Logical_Switch_Port external_ids                  godwit.dev/migration, -source, -target: the stamp
//
// Rules that the code holds everywhere:
//   - The target pod's spec.nodeName is what starts a preparation, never a phase of the VirtualMachineInstanceMigration: with hotplugged volumes that
//     stays Pending until the target is ready, and the target is not ready until it has its network.
//   - Of two live launchers the younger is the target. The label migrationJobUID cannot tell: it stays on a pod that has become the source.
//   - A port goes from one pair of chassis to another by way of one chassis only, and waits there until northd has forgotten the last activation:
//     OVN would not block the new target.
//   - What contradicts itself changes nothing (Unclear).
//
// One word for each thing: the UID of a VirtualMachineInstanceMigration is Job on a Launcher, as the label migrationJobUID says it, and Migration everywhere else.
//
// Sources: ovn-nb(5) and ovn-sb(5), "requested-chassis", "activation-strategy", "additional-chassis-activated"; OVN northd/northd.c (the
// activated flag is kept while sb->requested_additional_chassis is set); KubeVirt v1.9 pkg/virt-controller/watch/migration and vmi.
package migration
