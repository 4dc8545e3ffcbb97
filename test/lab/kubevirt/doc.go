// Package kubevirt stands in for KubeVirt's virt-controller and virt-handler in a lab. It keeps the order of events and the fields of KubeVirt 1.9, as
// recordings of the real virt-controller show them; what runs in the launcher pods is package guest's. It knows nothing of the cluster's CNI.
//
// There is one reconciler, one VirtualMachineInstance its key. It reads everything that the API server and the launchers say of the VM (world.go), asks the
// rules in their order (vm.go, vmi.go, migration.go, finish.go), takes the one step that the first applicable rule decides on, and starts over. A step is a
// single write or a single request to a launcher, so that what others see has the order of the rules. Nothing is remembered between steps but the
// moments from which delays count: the process may be killed at any moment.
//
// Beside it the API server is answered that asks about evictions of launchers (eviction.go, webhook.go): a VMI is marked then, and the reconciler makes
// migrations of it until it has left its node (evacuate.go).
//
// Annotations let a test hold a VM or a migration before any step, delay steps, and make things fail: see knobs.go.
package kubevirt
