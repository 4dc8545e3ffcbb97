package integration

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/agent"
	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// agentUser is who the agents are; on which node, their tokens say.
const agentUser = "system:serviceaccount:godwit-system:godwit-agent"

// as is what the agent of a node has from the API: its permissions, under the admission policies. An empty node: a token that is bound to none.
func (e *env) as(node string) *rest.Config {
	cfg := rest.CopyConfig(e.rest)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: agentUser, Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	if node != "" {
		cfg.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	return cfg
}

// An agent sees the migrations from and to its node, and reports its own side of them and nothing else.
func TestAgentReportsItsSide(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.namespace(t, "vms", nil)
	pm := &v1alpha1.PortMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: "vms", Name: "m"},
		Spec: v1alpha1.PortMigrationSpec{
			VMI: v1alpha1.ObjectName{Name: "vm", UID: "1"}, Migration: v1alpha1.ObjectName{Name: "m", UID: "2"},
			Source: v1alpha1.MigrationEnd{Node: "one", Pod: v1alpha1.ObjectName{Name: "a", UID: "3"}},
			Target: v1alpha1.MigrationEnd{Node: "two", Pod: v1alpha1.ObjectName{Name: "b", UID: "4"}},
			Ports:  []v1alpha1.MigratedPort{{Network: "default", Name: "vm/vms/vm/default", MAC: "0a:67:0a:f4:00:07"}},
		},
	}
	if err := e.api.Create(t.Context(), pm); err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string][2]int{"one": {1, 0}, "two": {0, 1}, "three": {0, 0}} {
		src, _, err := agent.API(e.as(node), node)
		if err != nil {
			t.Fatal(err)
		}
		for i, lw := range []interface {
			List(metav1.ListOptions) (runtime.Object, error)
		}{src.MigrationsFrom, src.MigrationsTo} {
			obj, err := lw.List(metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if list, ok := obj.(*v1alpha1.PortMigrationList); !ok || len(list.Items) != want[i] {
				t.Errorf("agent of %s lists %+v, want %d from the node and %d to it", node, obj, want[0], want[1])
			}
		}
	}
	now := &metav1.MicroTime{Time: time.Now().Truncate(time.Microsecond)}
	source := func(at *metav1.MicroTime) v1alpha1.PortMigrationStatus {
		return v1alpha1.PortMigrationStatus{Source: &v1alpha1.Observation{LastFrame: at}}
	}
	target := func(at *metav1.MicroTime) v1alpha1.PortMigrationStatus {
		return v1alpha1.PortMigrationStatus{Target: &v1alpha1.Observation{Announced: at, AnnouncedByAgent: true}}
	}
	result := func(*metav1.MicroTime) v1alpha1.PortMigrationStatus {
		return v1alpha1.PortMigrationStatus{Result: v1alpha1.MigrationSucceeded}
	}
	more := func(at *metav1.MicroTime) v1alpha1.PortMigrationStatus {
		return v1alpha1.PortMigrationStatus{Target: &v1alpha1.Observation{FirstFrame: at}}
	}
	for _, c := range []struct {
		what, node, denied string
		part               func(at *metav1.MicroTime) v1alpha1.PortMigrationStatus
	}{
		{"the source of another node", "two", "status.source is written by", source},
		{"the target of another node", "one", "status.target is written by", target},
		{"the source with a token of no node", "", "status.source is written by", source},
		{"the result", "one", "status.source or status.target alone", result},
		{"its own source", "one", "", source},
		{"its own target", "two", "", target},
		{"its target again, with more", "two", "", more},
	} {
		_, writers, err := agent.API(e.as(c.node), c.node)
		if err != nil {
			t.Fatal(err)
		}
		write := func(at *metav1.MicroTime) error {
			return writers.Report(t.Context(), types.NamespacedName{Namespace: "vms", Name: "m"}, c.part(at))
		}
		if c.denied == "" {
			if err := write(now); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			continue
		}
		eventually(t, func() error { // policies take a moment to come into force; what was written before, written again, changes nothing, and is nobody's to forbid
			if err := write(&metav1.MicroTime{Time: time.Now()}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), c.denied) {
				return fmt.Errorf("%s: %v, want it forbidden: %s", c.what, err, c.denied) //nolint:errorlint // it may be nil
			}
			return nil
		})
	}
	if err := e.api.Get(t.Context(), client.ObjectKeyFromObject(pm), pm); err != nil {
		t.Fatal(err)
	}
	st := pm.Status
	if st.Source == nil || !st.Source.LastFrame.Equal(now) || st.Target == nil || !st.Target.Announced.Equal(now) || !st.Target.FirstFrame.Equal(now) ||
		!st.Target.AnnouncedByAgent {
		t.Errorf("status is %+v, want what either side reported", st)
	}
	e.agentsWriteNothingElse(t, pm)
}

// agentsWriteNothingElse tries every field of the status that is not an agent's.
func (e *env) agentsWriteNothingElse(t *testing.T, pm *v1alpha1.PortMigration) {
	t.Helper()
	api, err := client.New(e.as("one"), client.Options{Scheme: e.api.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	full := v1alpha1.PortMigrationStatus{
		Phase: "Prepared", Reason: "R", Message: "m", Result: v1alpha1.MigrationRunning, Interruption: &v1alpha1.Interruption{Milliseconds: "1"},
		Stages: []v1alpha1.Stage{{Name: v1alpha1.StageReady, Time: metav1.NowMicro()}}, Source: pm.Status.Source, Target: pm.Status.Target,
	}
	for i := range reflect.TypeFor[v1alpha1.PortMigrationStatus]().NumField() {
		field := reflect.TypeFor[v1alpha1.PortMigrationStatus]().Field(i).Name
		value := reflect.ValueOf(full).Field(i)
		if value.IsZero() {
			t.Errorf("the test has no value for status field %s", field)
		}
		after := pm.DeepCopy()
		reflect.ValueOf(&after.Status).Elem().Field(i).Set(value)
		if field == "Source" || field == "Target" {
			continue // tried above
		}
		if err := api.Status().Patch(t.Context(), after, client.MergeFrom(pm)); !apierrors.IsForbidden(err) {
			t.Errorf("an agent's write of status field %s: %v, want it forbidden", field, err)
		}
	}
	after := pm.DeepCopy()
	after.Labels = map[string]string{"x": "y"}
	if err := api.Patch(t.Context(), after, client.MergeFrom(pm)); !apierrors.IsForbidden(err) {
		t.Errorf("an agent's label: %v, want it forbidden", err)
	}
}
