package controller

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/events"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// portsAPI has Ports, of which the cache knows some.
type portsAPI struct {
	client.Client
	stored, cached map[string]string // the VM by the Port's name
}

func (a *portsAPI) Create(_ context.Context, obj client.Object, _ ...client.CreateOption) error {
	port := obj.(*v1alpha1.Port)
	if _, ok := a.stored[port.Name]; ok {
		return apierrors.NewAlreadyExists(schema.GroupResource{Resource: "ports"}, port.Name)
	}
	a.stored[port.Name] = port.Spec.Target.Name
	return nil
}

func (a *portsAPI) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	vm, ok := a.cached[key.Name]
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "ports"}, key.Name)
	}
	port := obj.(*v1alpha1.Port)
	port.Namespace, port.Name, port.Spec.Target.Name = key.Namespace, key.Name, vm
	return nil
}

// A VM's Port has another name where that is taken, and a VM that can have neither does not wait without a word.
func TestMakePort(t *testing.T) {
	second := longName("vm", podNetwork)
	for name, c := range map[string]struct {
		stored, cached map[string]string
		made           string
		event          bool
	}{
		"the VM's name is free":     {map[string]string{}, nil, "vm", false},
		"the cache is behind":       {map[string]string{"vm": "vm"}, nil, "", false},
		"it is there already":       {map[string]string{"vm": "vm"}, map[string]string{"vm": "vm"}, "", false},
		"another VM's has the name": {map[string]string{"vm": "other"}, map[string]string{"vm": "other"}, second, true},
		"the second is behind":      {map[string]string{"vm": "other", second: "vm"}, map[string]string{"vm": "other"}, "", false},
		"both are others'":          {map[string]string{"vm": "other", second: "other"}, map[string]string{"vm": "other", second: "other"}, "", true},
	} {
		recorder := events.NewFakeRecorder(1)
		r := &vmReconciler{api: &portsAPI{stored: c.stored, cached: c.cached}, events: recorder, log: slog.New(slog.DiscardHandler)}
		vmi := &kubevirtv1.VirtualMachineInstance{}
		vmi.Namespace, vmi.Name = "ns", "vm"
		port, err := r.makePort(t.Context(), vmi, podNetwork)
		made := ""
		if port != nil {
			made = port.Name
		}
		if err != nil || made != c.made {
			t.Errorf("%s: made %q, %v; want %q", name, made, err, c.made)
		}
		if got := len(recorder.Events) == 1; got != c.event {
			t.Errorf("%s: an event is %v, want %v", name, got, c.event)
		}
	}
}

func TestLongName(t *testing.T) {
	short, long := longName("vmim", "a"), longName(strings.Repeat("x", 253), "a")
	if short != longName("vmim", "a") || short == longName("vmim", "b") || !strings.HasPrefix(short, "vmim-") {
		t.Errorf("names %q and %q", short, longName("vmim", "b"))
	}
	if len(long) > maxName {
		t.Errorf("%d characters, want at most %d", len(long), maxName)
	}
	if got := longName(strings.Repeat("x", maxName-10)+".y", "a"); strings.Contains(got, ".-") {
		t.Errorf("%q is no name of an object: a part of it ends in a dash's place", got)
	}
}

// The Port of a NIC on a second network has a name that the API takes, whatever KubeVirt takes for a network's.
func TestSecondNames(t *testing.T) {
	if got, want := secondNames("web", "blue"), []string{"web-blue", longName("web-blue", "blue")}; !slices.Equal(got, want) {
		t.Errorf("names %v, want %v", got, want)
	}
	seen := map[string]string{}
	for _, network := range []string{"blue", "Blue", "net_1", "net-", "net_", "_", strings.Repeat("n", 63)} {
		for _, vm := range []string{"web", strings.Repeat("v", 63), strings.Repeat("v", maxName-1)} {
			for _, name := range secondNames(vm, network) {
				if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 || seen[name] != "" {
					t.Errorf("network %s of VM %s: Port %q: %v; it is that of network %q too", network, vm, name, problems, seen[name])
				}
				seen[name] = network
			}
		}
	}
}

// A Port is in use as long as its VM may run, not as long as KubeVirt keeps the instance.
func TestInUse(t *testing.T) {
	port := portWith("vm", 1, v1alpha1.PortStatus{})
	port.Spec.Target.Name, port.Spec.Target.Network = "vm", podNetwork
	for phase, want := range map[kubevirtv1.VirtualMachineInstancePhase]bool{
		kubevirtv1.Scheduling: true, kubevirtv1.Running: true, kubevirtv1.Succeeded: false, kubevirtv1.Failed: false,
	} {
		vmi := &kubevirtv1.VirtualMachineInstance{}
		vmi.Namespace, vmi.Name, vmi.Status.Phase = "ns", "vm", phase
		vmi.Spec.Networks = []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()}
		if inUse(vmi, &port) != want || carries(vmi, &port) != want || !uses(vmi, &port) {
			t.Errorf("%s: in use %v, carried %v, the VM's %v; want %v, %v, true", phase, inUse(vmi, &port), carries(vmi, &port), uses(vmi, &port), want, want)
		}
	}
	if inUse(nil, &port) {
		t.Error("in use without an instance")
	}
}
