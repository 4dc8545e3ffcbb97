package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// TestVM plays KubeVirt, by hand, to a controller on real OVN. The nodes are chassis by name alone: nothing is attached.
func TestVM(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.start(t)
	for _, n := range []string{"n1", "n2", "n3"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.installKubeVirt(t) // later than the controller: it finds out
	for name, scenario := range map[string]func(*testing.T, *env){
		"there and back":         thereAndBack,
		"migration that fails":   failedMigration,
		"names":                  vmNames,
		"stopped and started":    stoppedAndStarted,
		"reserved":               reservedPort,
		"refused":                refusedPorts,
		"without a pod network":  withoutPodNetwork,
		"security and addresses": portSecurity,
		"one MAC for two":        oneMAC,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, e) })
	}
	t.Run("restart in the middle", func(t *testing.T) { restartInMigration(t, e) })
	t.Run("northbound database lost", func(t *testing.T) { northboundLost(t, e) })
}

// thereAndBack follows one VM over two migrations: one row and one identity.
func thereAndBack(t *testing.T, e *env) {
	e.namespace(t, "move", nil)
	vm := key("move", "vm")
	vmi := e.vmi(t, vm)
	e.vmPort(t, vm, v1alpha1.PortBound)
	e.asks(t, vm, "godwit-none", "")
	first := e.launcher(t, vmi, "virt-launcher-vm-1", "n1", nil)
	row := e.asks(t, vm, "n1", "")
	id := e.mayAttach(t, first, v1alpha1.Attach{Chassis: "n1"})
	if row.Options["iface-id-ver"] != string(vmi.UID) || id.VMI == nil || id.VMI.UID != string(vmi.UID) || id.VMI.Name != "vm" {
		t.Errorf("row has options %v, the launcher is %+v", row.Options, id.VMI)
	}
	uuid, source, node := row.UUID, first, "n1"
	for i, to := range []string{"n2", "n1"} {
		vmim := e.migration(t, vmi)
		// A target is younger than its source, and creation times have whole seconds.
		time.Sleep(time.Until(source.CreationTimestamp.Add(time.Second)))
		target := e.launcher(t, vmi, fmt.Sprintf("virt-launcher-vm-%d", i+2), to, vmim)
		// The migration is still Pending: what counts is the target's node.
		row := e.asks(t, vm, node+","+to, "rarp")
		if row.ExternalIDs["godwit.dev/migration"] != string(vmim.UID) {
			t.Errorf("row is stamped %v, want migration %s", row.ExternalIDs, vmim.UID)
		}
		got := e.mayAttach(t, target, v1alpha1.Attach{Chassis: to, Migration: string(vmim.UID), Activation: v1alpha1.ActivationRARP})
		if !slices.Equal(got.IPs, id.IPs) || got.MAC.String() != id.MAC.String() || got.MTU != id.MTU {
			t.Errorf("target is %+v, source %+v", got, id)
		}
		e.vmPort(t, vm, v1alpha1.PortMigrating)
		e.migrationPhase(t, vmim, kubevirtv1.MigrationSucceeded)
		if row := e.asks(t, vm, to, ""); row.UUID != uuid {
			t.Errorf("row %s has become %s", uuid, row.UUID)
		}
		e.podPhase(t, source, corev1.PodSucceeded)
		source, node = target, to
		e.vmPort(t, vm, v1alpha1.PortAttached)
		e.records(t, vm, i+1)
	}
	checkRecords(t, e, vm)
}

// checkRecords looks at what two migrations left behind, and plays the agents.
func checkRecords(t *testing.T, e *env, vm types.NamespacedName) {
	t.Helper()
	records := e.records(t, vm, 2)
	slices.SortFunc(records, func(a, b v1alpha1.PortMigration) int { return strings.Compare(a.Spec.Source.Node, b.Spec.Source.Node) })
	pm := records[0]
	if pm.Spec.Source.Node != "n1" || pm.Spec.Target.Node != "n2" || pm.Status.Result != v1alpha1.MigrationSucceeded {
		t.Errorf("PortMigration from %s to %s: %s", pm.Spec.Source.Node, pm.Spec.Target.Node, pm.Status.Result)
	}
	if len(pm.Spec.Ports) != 1 || pm.Spec.Ports[0].Name != "vm/move/vm/default" || pm.Spec.Ports[0].MAC == "" {
		t.Errorf("PortMigration is about %+v", pm.Spec.Ports)
	}
	var stages []string
	for _, s := range pm.Status.Stages {
		stages = append(stages, string(s.Name))
	}
	if d := cmp.Diff([]string{"Scheduled", "Prepared", "Ready", "Committed", "Completed"}, stages); d != "" {
		t.Errorf("stages (-want +got)\n%s", d)
	}
	for i := 1; i < len(pm.Status.Stages); i++ {
		if pm.Status.Stages[i].Time.Before(&pm.Status.Stages[i-1].Time) {
			t.Errorf("stages out of order: %+v", pm.Status.Stages)
		}
	}
	at := func(ms int) *metav1.MicroTime {
		m := metav1.NewMicroTime(time.UnixMilli(1_800_000_000_000 + int64(ms)))
		return &m
	}
	before := pm.DeepCopy()
	pm.Status.Source = &v1alpha1.Observation{Clock: v1alpha1.Clock{BootID: "a", Synchronized: true, MaxErrorMicroseconds: 1500}, LastFrame: at(100)}
	pm.Status.Target = &v1alpha1.Observation{Clock: v1alpha1.Clock{BootID: "b", Synchronized: true, MaxErrorMicroseconds: 500}, Announced: at(223)}
	if err := e.api.Status().Patch(t.Context(), &pm, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(&pm), &pm); err != nil {
			return err
		}
		want := v1alpha1.Interruption{Milliseconds: "123.0", UncertaintyMilliseconds: "2.0"}
		if pm.Status.Interruption == nil || *pm.Status.Interruption != want {
			return fmt.Errorf("interruption %+v, want %+v", pm.Status.Interruption, want)
		}
		return nil
	})
}

// failedMigration: the target is asked for, and then is not any more.
func failedMigration(t *testing.T, e *env) {
	e.namespace(t, "fail", nil)
	vm := key("fail", "vm")
	vmi := e.vmi(t, vm)
	e.launcher(t, vmi, "source", "n1", nil)
	e.asks(t, vm, "n1", "")
	vmim := e.migration(t, vmi)
	target := e.launcher(t, vmi, "target", "n2", vmim)
	e.asks(t, vm, "n1,n2", "rarp")
	e.podPhase(t, target, corev1.PodFailed)
	e.asks(t, vm, "n1", "")
	e.migrationPhase(t, vmim, kubevirtv1.MigrationFailed)
	pm := e.records(t, vm, 1)[0]
	if pm.Status.Result != v1alpha1.MigrationFailed || pm.Status.Phase != "RolledBack" || pm.Status.Reason != "TargetGone" {
		t.Errorf("PortMigration: %+v", pm.Status)
	}
	if id, err := e.identity(t.Context(), key("fail", "source")); err != nil || id.Attach == nil || id.Attach.Chassis != "n1" {
		t.Errorf("the source is %+v, %v", id, err)
	}
}

// vmNames: VMs are told apart by their full names, however long, whatever their hostname.
func vmNames(t *testing.T, e *env) {
	e.namespace(t, "names", nil)
	long := strings.Repeat("a", 63)
	seen := map[string]string{}
	for _, name := range []string{long + "-b", long + "-c", "with.dots.in.it", "with"} {
		vm := key("names", name)
		vmi := e.vmi(t, vm, func(v *kubevirtv1.VirtualMachineInstance) { v.Spec.Hostname = "same" })
		suffix := fmt.Sprint(len(seen))
		e.launcher(t, vmi, "launcher-"+suffix, "n1", nil)
		row := e.asks(t, vm, "n1", "")
		if other, dup := seen[row.UUID]; dup {
			t.Errorf("VMs %s and %s have one row", name, other)
		}
		seen[row.UUID] = name
		if port := e.vmPort(t, vm, v1alpha1.PortBound); port.Spec.Target.Name != name || len(port.OwnerReferences) != 1 || port.OwnerReferences[0].UID != vmi.UID {
			t.Errorf("Port %s is for %+v and owned by %+v", port.Name, port.Spec.Target, port.OwnerReferences)
		}
	}
}

// stoppedAndStarted: the identity is the VM's, not that of an instance.
func stoppedAndStarted(t *testing.T, e *env) {
	e.namespace(t, "stop", nil)
	vm := key("stop", "vm")
	controller := true
	ofVM := func(v *kubevirtv1.VirtualMachineInstance) {
		v.OwnerReferences = []metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine", Name: "vm", UID: "11111111-0000-0000-0000-000000000001", Controller: &controller}}
	}
	vmi := e.vmi(t, vm, ofVM)
	pod := e.launcher(t, vmi, "first", "n1", nil)
	row, id := e.asks(t, vm, "n1", ""), e.mayAttach(t, pod, v1alpha1.Attach{Chassis: "n1"})
	if port := e.vmPort(t, vm, v1alpha1.PortBound); port.OwnerReferences[0].Kind != "VirtualMachine" || port.Spec.Target.Kind != "VirtualMachine" {
		t.Errorf("Port is owned by %+v and for %+v", port.OwnerReferences, port.Spec.Target)
	}
	e.deletePod(t, key("stop", "first"))
	if err := e.api.Delete(t.Context(), vmi); err != nil {
		t.Fatal(err)
	}
	e.asks(t, vm, "godwit-none", "")
	e.vmPort(t, vm, v1alpha1.PortReserved)
	again := e.vmi(t, vm, ofVM)
	pod = e.launcher(t, again, "second", "n2", nil)
	now, nowID := e.asks(t, vm, "n2", ""), e.mayAttach(t, pod, v1alpha1.Attach{Chassis: "n2"})
	if now.UUID != row.UUID || !slices.Equal(id.IPs, nowID.IPs) || id.MAC.String() != nowID.MAC.String() {
		t.Errorf("was %s %+v, is %s %+v", row.UUID, id, now.UUID, nowID)
	}
	if now.Options["iface-id-ver"] != string(again.UID) {
		t.Errorf("options %v: a launcher of the earlier instance could claim the port", now.Options)
	}
	// The VM is deleted: its Port stays as long as the instance runs, then goes with its addresses.
	port := &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: "stop", Name: "vm"}}
	if err := e.api.Delete(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), vm, port); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(port.Status.Conditions, "Ready"); c == nil || c.Reason != "Terminating" {
			return fmt.Errorf("condition %+v, want Terminating", c)
		}
		return nil
	})
	if err := e.api.Delete(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := e.api.Get(t.Context(), vm, port); !apierrors.IsNotFound(err) {
			return fmt.Errorf("Port still there: %+v (%w)", port.Status, err)
		}
		lsp, err := e.nb.Port(t.Context(), ident.VMPort("stop", "vm", "default"))
		if err == nil && lsp != nil {
			err = fmt.Errorf("row still there: %v", lsp)
		}
		return err
	})
}

func newPort(ns, name, vm string, spec v1alpha1.PortSpec) *v1alpha1.Port {
	spec.Target = v1alpha1.PortTarget{Kind: "VirtualMachineInstance", Name: vm, Network: "default"}
	return &v1alpha1.Port{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: spec}
}

// reservedPort: a Port that is there before its VM is the VM's.
func reservedPort(t *testing.T, e *env) {
	e.namespace(t, "reserve", nil)
	if err := e.api.Create(t.Context(), newPort("reserve", "mine", "vm", v1alpha1.PortSpec{IPs: []string{"10.244.77.7"}, MAC: "02:00:00:00:77:07"})); err != nil {
		t.Fatal(err)
	}
	e.vmPort(t, key("reserve", "mine"), v1alpha1.PortReserved)
	vmi := e.vmi(t, key("reserve", "vm"))
	pod := e.launcher(t, vmi, "launcher", "n1", nil)
	id := e.mayAttach(t, pod, v1alpha1.Attach{Chassis: "n1"})
	if id.IPs[0].Addr().String() != "10.244.77.7" || len(id.IPs) != 2 || id.MAC.String() != "02:00:00:00:77:07" {
		t.Errorf("the VM has %+v, want what was reserved and an address of the other family", id)
	}
	var ports v1alpha1.PortList
	if err := e.api.List(t.Context(), &ports, client.InNamespace("reserve")); err != nil || len(ports.Items) != 1 {
		t.Errorf("%d Ports, %v: want the reserved one alone", len(ports.Items), err)
	}
}

// refusedPorts: what cannot be had is refused, by the schema where it can tell, else by a condition; nobody loses anything by it.
func refusedPorts(t *testing.T, e *env) {
	e.namespace(t, "refuse", nil)
	for name, c := range map[string]struct {
		spec v1alpha1.PortSpec
		says string
	}{
		"no address":     {v1alpha1.PortSpec{IPs: []string{"10.244.0"}}, "must be addresses"},
		"multicast MAC":  {v1alpha1.PortSpec{MAC: "01:00:00:00:00:01"}, "mac"},
		"no range":       {v1alpha1.PortSpec{AllowedAddresses: []string{"10.0.0.0/99"}}, "addresses or ranges"},
		"other security": {v1alpha1.PortSpec{PortSecurity: "Sometimes"}, "portSecurity"},
		"no name":        {v1alpha1.PortSpec{Subnet: "a/b"}, "subnet"},
	} {
		err := e.api.Create(t.Context(), newPort("refuse", "bad", "bad", c.spec))
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.says)
		}
	}
	if err := e.api.Create(t.Context(), newPort("refuse", "has", "has", v1alpha1.PortSpec{IPs: []string{"10.244.78.1"}, MAC: "02:00:00:00:78:01"})); err != nil {
		t.Fatal(err)
	}
	e.vmPort(t, key("refuse", "has"), v1alpha1.PortReserved)
	unchangeable(t, e, key("refuse", "has"))
	for name, c := range map[string]struct {
		spec   v1alpha1.PortSpec
		reason string
	}{
		"taken":        {v1alpha1.PortSpec{IPs: []string{"10.244.78.1"}}, "AddressTaken"},
		"out-of-range": {v1alpha1.PortSpec{IPs: []string{"192.0.2.7"}}, "AddressOutOfRange"},
		"the-gateway":  {v1alpha1.PortSpec{IPs: []string{"10.244.0.1"}}, "AddressOutOfRange"},
		"mac-taken":    {v1alpha1.PortSpec{MAC: "02:00:00:00:78:01"}, "MACTaken"},
		"mac-of-a-pod": {v1alpha1.PortSpec{MAC: "0a:67:0a:f4:00:02"}, "MACReserved"},
		"no-subnet":    {v1alpha1.PortSpec{Subnet: "nowhere"}, "SubnetNotReady"},
	} {
		if err := e.api.Create(t.Context(), newPort("refuse", name, name, c.spec)); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			var port v1alpha1.Port
			if err := e.api.Get(t.Context(), key("refuse", name), &port); err != nil {
				return err
			}
			if r := meta.FindStatusCondition(port.Status.Conditions, "Ready"); r == nil || r.Reason != c.reason || len(port.Status.IPs) != 0 {
				return fmt.Errorf("%s: condition %+v, want %s; status %+v", name, r, c.reason, port.Status)
			}
			return nil
		})
	}
	// What was taken can be had when it is given back.
	if err := e.api.Delete(t.Context(), newPort("refuse", "has", "has", v1alpha1.PortSpec{})); err != nil {
		t.Fatal(err)
	}
	e.vmPort(t, key("refuse", "taken"), v1alpha1.PortReserved)
	e.vmPort(t, key("refuse", "mac-taken"), v1alpha1.PortReserved)
}

// unchangeable: what a Port asks for at its creation cannot be changed, removed, or added later.
func unchangeable(t *testing.T, e *env, port types.NamespacedName) {
	t.Helper()
	for name, change := range map[string]func(*v1alpha1.PortSpec){
		"other ips": func(s *v1alpha1.PortSpec) { s.IPs = []string{"10.244.78.2"} },
		"no ips":    func(s *v1alpha1.PortSpec) { s.IPs = nil },
		"a subnet":  func(s *v1alpha1.PortSpec) { s.Subnet = "default" },
	} {
		eventually(t, func() error { // the controller writes it too
			var p v1alpha1.Port
			if err := e.api.Get(t.Context(), port, &p); err != nil {
				return err
			}
			change(&p.Spec)
			if err := e.api.Update(t.Context(), &p); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "cannot be") {
				return fmt.Errorf("%s: %q, want it to be refused", name, fmt.Sprint(err))
			}
			return nil
		})
	}
}

// withoutPodNetwork: the launcher of a VM that has no NIC on the pod network is a pod like others.
func withoutPodNetwork(t *testing.T, e *env) {
	e.namespace(t, "none", nil)
	no := false
	vmi := e.vmi(t, key("none", "vm"), func(v *kubevirtv1.VirtualMachineInstance) {
		v.Spec.Networks, v.Spec.Domain.Devices.Interfaces, v.Spec.Domain.Devices.AutoattachPodInterface = nil, nil, &no
	})
	e.launcher(t, vmi, "launcher", "n1", nil)
	id, _ := e.served(t, key("none", "launcher"))
	if id.VMI != nil || id.Attach != nil {
		t.Errorf("identity %+v is a VM's", id)
	}
	if _, err := e.row(t, key("none", "vm")); err == nil {
		t.Error("the VM has a row")
	}
	// A VM that had such a NIC, and is started without it, asks for nobody any more.
	vm := key("none", "later")
	had := e.vmi(t, vm)
	e.launcher(t, had, "first", "n1", nil)
	e.asks(t, vm, "n1", "")
	if err := e.api.Delete(t.Context(), had); err != nil {
		t.Fatal(err)
	}
	e.vmi(t, vm, func(v *kubevirtv1.VirtualMachineInstance) {
		v.Spec.Networks, v.Spec.Domain.Devices.Interfaces, v.Spec.Domain.Devices.AutoattachPodInterface = nil, nil, &no
	})
	e.asks(t, vm, "godwit-none", "")
}

func portSecurity(t *testing.T, e *env) {
	e.namespace(t, "secure", nil)
	vm := key("secure", "vm")
	e.vmi(t, vm)
	port := e.vmPort(t, vm, v1alpha1.PortBound)
	before := port.DeepCopy()
	port.Spec.AllowedAddresses = []string{"10.9.0.0/24"}
	if err := e.api.Patch(t.Context(), port, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		row, err := e.row(t, vm)
		if err == nil && (len(row.PortSecurity) != 1 || !strings.HasSuffix(row.PortSecurity[0], "fe80::/64 10.9.0.0/24")) {
			err = fmt.Errorf("port_security %q", row.PortSecurity)
		}
		return err
	})
	othersAddresses(t, e, port)
	before = port.DeepCopy()
	port.Spec.PortSecurity = v1alpha1.PortSecurityOff
	if err := e.api.Patch(t.Context(), port, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		row, err := e.row(t, vm)
		if err == nil && (len(row.PortSecurity) != 0 || !slices.Contains(row.Addresses, "unknown")) {
			err = fmt.Errorf("port_security %q, addresses %q", row.PortSecurity, row.Addresses)
		}
		return err
	})
}

// othersAddresses: a VM may not send from what a Subnet gives to others, until that is excluded there; nor from what a Subnet gives that came later.
func othersAddresses(t *testing.T, e *env, port *v1alpha1.Port) {
	t.Helper()
	vm := client.ObjectKeyFromObject(port)
	allows := func(suffix, refused string) {
		t.Helper()
		eventually(t, func() error {
			if err := e.api.Get(t.Context(), vm, port); err != nil {
				return err
			}
			row, err := e.row(t, vm)
			if err != nil || len(row.PortSecurity) != 1 || !strings.HasSuffix(row.PortSecurity[0], "fe80::/64"+suffix) {
				return fmt.Errorf("row %+v (%w), want port_security to end with fe80::/64%s", row, err, suffix)
			}
			c := meta.FindStatusCondition(port.Status.Conditions, v1alpha1.ConditionAllowed)
			if (c != nil) != (refused != "") || c != nil && !strings.Contains(c.Message, "from "+refused+":") || !meta.IsStatusConditionTrue(port.Status.Conditions, v1alpha1.ConditionReady) {
				return fmt.Errorf("conditions %+v, want Ready, and %q refused", port.Status.Conditions, refused)
			}
			return nil
		})
	}
	shared := subnet("shared", v1alpha1.SubnetSpec{CIDRs: []string{"10.66.0.0/24"}, NamespaceSelector: selectsAny("nobody")})
	e.create(t, shared)
	before := port.DeepCopy()
	port.Spec.AllowedAddresses = []string{"10.9.0.0/24", "10.66.0.77", "100.64.0.0/30", "169.254.0.0/16"}
	if err := e.api.Patch(t.Context(), port, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	allows(" 10.9.0.0/24", "10.66.0.77, 100.64.0.0/30, 169.254.0.0/16")
	e.exclude(t, "shared", "10.66.0.77")
	allows(" 10.9.0.0/24 10.66.0.77", "100.64.0.0/30, 169.254.0.0/16")
	later := subnet("later", v1alpha1.SubnetSpec{CIDRs: []string{"10.9.0.128/25"}, NamespaceSelector: selectsAny("nobody")})
	e.create(t, later)
	allows(" 10.66.0.77", "10.9.0.0/24, 100.64.0.0/30, 169.254.0.0/16")
	for _, s := range []client.Object{shared, later} {
		if err := e.api.Delete(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	allows(" 10.9.0.0/24 10.66.0.77", "100.64.0.0/30, 169.254.0.0/16")
	before = port.DeepCopy()
	port.Spec.AllowedAddresses = []string{"10.9.0.0/24"}
	if err := e.api.Patch(t.Context(), port, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	allows(" 10.9.0.0/24", "")
}

// restartInMigration: a controller that was away goes on where the other left.
func restartInMigration(t *testing.T, e *env) {
	e.namespace(t, "again", nil)
	vm := key("again", "vm")
	vmi := e.vmi(t, vm)
	source := e.launcher(t, vmi, "source", "n1", nil)
	uuid := e.asks(t, vm, "n1", "").UUID
	vmim := e.migration(t, vmi)
	e.launcher(t, vmi, "target", "n3", vmim)
	e.asks(t, vm, "n1,n3", "rarp")
	eventually(t, func() error { // the record is made after the row is written
		var list v1alpha1.PortMigrationList
		if err := e.api.List(t.Context(), &list, client.InNamespace("again")); err != nil || len(list.Items) != 1 {
			return fmt.Errorf("%d PortMigrations (%w), want 1", len(list.Items), err)
		}
		return nil
	})
	e.stop()
	e.migrationPhase(t, vmim, kubevirtv1.MigrationSucceeded)
	e.podPhase(t, source, corev1.PodSucceeded)
	if row, err := e.row(t, vm); err != nil || row.Options["requested-chassis"] != "n1,n3" {
		t.Fatalf("somebody else writes: %v, %v", row, err)
	}
	e.start(t)
	if row := e.asks(t, vm, "n3", ""); row.UUID != uuid {
		t.Errorf("row %s has become %s", uuid, row.UUID)
	}
	if pm := e.records(t, vm, 1)[0]; pm.Status.Result != v1alpha1.MigrationSucceeded {
		t.Errorf("PortMigration: %+v", pm.Status)
	}
}
