package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/traffic"
)

// inFlight is how long before QEMU's stop a probe may have been sent that the guest gets twice: from the source before the stop, and from the target if its switch comes to its copy after the port
// was opened there (docs/migration.md). What is sent later cannot reach the source's guest, and a port that is open too early gives a probe twice for as long as QEMU copies.
const inFlight = 500 * time.Millisecond

// once fails the test if a VM got probes twice, but for those that were on their way when QEMU stopped it.
func once(t *testing.T, vm *lab.VM, result *traffic.Result, arrivals *traffic.Arrivals) {
	t.Helper()
	again := arrivals.Twice(result)
	if len(again) == 0 {
		return
	}
	entries, err := vm.Journal()
	if err != nil {
		t.Fatal(err)
	}
	entries = slices.DeleteFunc(entries, func(e kubevirt.Entry) bool { return e.Event != string(guest.Stopped) })
	for _, at := range again {
		if slices.ContainsFunc(entries, func(e kubevirt.Entry) bool { return !e.Time.Before(at) && e.Time.Sub(at) <= busy(inFlight) }) {
			t.Logf("VM %s got a probe twice that was on its way when QEMU stopped it, sent at %s", vm, at)
			continue
		}
		t.Errorf("VM %s got a probe twice, sent at %s; QEMU's stops: %v", vm, at, entries)
	}
}
