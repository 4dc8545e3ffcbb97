package agent

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/conntrack"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/netdev"
)

// KubeVirt makes a migration's target pod anew when the first one goes while it waits. Each has a record of its own.

// rolledBack is the end of a record whose target has gone, as the controller writes it.
func rolledBack(st *v1alpha1.PortMigrationStatus) {
	now := metav1.NewMicroTime(time.Now())
	st.Stages = append(st.Stages, v1alpha1.Stage{Name: v1alpha1.StageRolledBack, Time: now}, v1alpha1.Stage{Name: v1alpha1.StageCompleted, Time: now})
	st.Phase, st.Result = "RolledBack", v1alpha1.MigrationFailed
}

// anew replaces the target's pod on this node by a ready one, with a record.
func (w *watched) anew(t *testing.T) *v1alpha1.PortMigration {
	t.Helper()
	w.pods.Delete(targetPod())
	pm := w.pm.DeepCopy()
	pm.Name, pm.Spec.Target.Pod = "m2", v1alpha1.ObjectName{Name: "a2", UID: "a2-uid"}
	w.records.add(pm)
	second := readyPod()
	second.Name, second.UID = pm.Spec.Target.Pod.Name, pm.Spec.Target.Pod.UID
	id, err := v1alpha1.ParseIdentity(second.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	id.PodUID = string(second.UID)
	second.Annotations[v1alpha1.IdentityAnnotation] = id.Text()
	w.pods.Add(second)
	req := addRequest()
	req.ContainerID, req.Pod.Name, req.Pod.UID = "c2", second.Name, string(second.UID)
	if _, err := w.handle(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return pm
}

// The VM is announced from the second pod, and that is told of in its record alone.
func TestTargetIsMadeAnew(t *testing.T) {
	w := newWatched(t)
	w.records.add(w.pm)
	first := w.links.capture(t, w.target(t))
	w.records.change(w.pm, rolledBack)
	second := w.anew(t)
	got := w.records.reported(t, second, sideTarget)
	if got.Announced == nil || !got.AnnouncedByAgent {
		t.Errorf("reported %+v, want the agent's announcement on the second pod's link", got)
	}
	if o := w.records.status(w.pm).Target; o != nil && o.Announced != nil {
		t.Errorf("reported of the first pod: %+v", o)
	}
	w.links.mu.Lock()
	defer w.links.mu.Unlock()
	for _, link := range w.links.sent {
		if link != netdev.HostName("c2", "eth0") {
			t.Errorf("announced on %s, want the second pod's link alone", link)
		}
	}
	select {
	case <-first.closed:
	default:
		t.Error("the first pod's link is still looked at")
	}
}

// What the source says of the migration is taken for the second pod: its connections, and that the VM was stopped.
func TestHandoffToATargetThatIsMadeAnew(t *testing.T) {
	w, s, table := receiving(t)
	vm, _ := connectionsOf(t)
	w.target(t)
	if _, err := s.Handle(t.Context(), moving, message(t, portName, vm[0])); err != nil {
		t.Fatal(err)
	}
	w.records.change(w.pm, rolledBack)
	w.idle(t)
	second := w.anew(t)
	eventually(t, "that connections are taken again", func() error {
		return errors.Join(s.Admit("zero", moving), told(s.Handle(t.Context(), moving, message(t, portName, vm[1]))), told(s.Handle(t.Context(), moving, stopped)))
	})
	for range 50 { // whichever of the two records comes first
		if err := s.Admit("zero", moving); err != nil {
			t.Fatal(err)
		}
	}
	table.mu.Lock()
	if d := cmp.Diff([]conntrack.Entry{vm[1]}, table.zones[portZone], cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("the port's zone (-want +got):\n%s", d)
	}
	table.mu.Unlock()
	c := w.links.capture(t, netdev.HostName("c2", "eth0"))
	c.frames <- frame.Seen{At: time.Now()}
	c.frames <- frame.Seen{At: time.Now(), RARP: true}
	if got := w.records.reported(t, second, sideTarget); got.ActivatedBy != v1alpha1.ActivatedBySignal || got.Connections == nil || got.Connections.Moved != 1 {
		t.Errorf("reported of the second pod: %+v, %+v, want it opened by the signal, with 1 connection", got, got.Connections)
	}
}

// The source hands over anew, and notes it in the second record.
func TestHandoffFromTheSourceOfATargetThatIsMadeAnew(t *testing.T) {
	w, e, _, _ := leaving(t)
	vm, _ := connectionsOf(t)
	want := map[string][]conntrack.Entry{portName: {vm[0], vm[1]}, hairpins: {vm[2]}}
	e.awaitConnections(t, want)
	w.records.change(w.pm, rolledBack)
	w.idle(t)
	e.mu.Lock()
	e.heard = nil
	e.mu.Unlock()
	w.links.mu.Lock()
	clear(w.links.open)
	w.links.mu.Unlock()
	first := w.records.status(w.pm)
	second := w.pm.DeepCopy()
	second.Name, second.Spec.Target.Pod = "m2", v1alpha1.ObjectName{Name: "b2", UID: "b2-uid"}
	second.Status.Stages = []v1alpha1.Stage{{Name: v1alpha1.StageScheduled}, {Name: v1alpha1.StagePrepared}}
	w.records.add(second)
	e.awaitConnections(t, want)
	eventually(t, "what the controller is told", func() error {
		if o := w.records.status(second).Source; o == nil || o.Connections == nil || o.Connections.Began == nil || o.Connections.Ended != nil {
			return errors.New("not that it has begun")
		}
		return nil
	})
	if d := cmp.Diff(first, w.records.status(w.pm)); d != "" {
		t.Errorf("the first record was changed (-was +is):\n%s", d)
	}
}
