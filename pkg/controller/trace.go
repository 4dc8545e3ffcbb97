package controller

// Traces of migrations.
// In:   PortMigrations that are over, with what the agents of both sides observed.
// Out:  one trace each, to an OTLP receiver. It is made of the record's times, each span in the name of who measured it, so that nothing has to be carried from one part of
//       Godwit to another; its id is the migration's UID.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/otlp"
)

const (
	// observedWithin is how long after its end a migration's record may wait for what an agent saw.
	observedWithin = 10 * time.Second
	// tracesAgain is for how long back a new leader tells what the one before may have told already: the spans have the same ids.
	tracesAgain = time.Minute
	// tracesWaiting is how many traces may wait for a receiver that is slow; more are dropped.
	tracesWaiting = 256
	// serviceController and serviceAgent are who measured.
	serviceController = "godwit-controller"
	serviceAgent      = "godwit-agent"
)

// traceRetries are the pauses before a trace is sent again.
func traceRetries() []time.Duration {
	return []time.Duration{time.Second, 5 * time.Second, 20 * time.Second}
}

// tracer sends the traces of migrations that end while it runs.
type tracer struct {
	client  *otlp.Client
	log     *slog.Logger
	waiting chan []otlp.Span
	// since is from when on migrations are this leader's to tell, and told are those whose traces were handed over. The one worker for PortMigrations alone uses them.
	since time.Time
	told  map[types.NamespacedName]types.UID
}

// newTracer makes a tracer for an endpoint; nil for none, which tells nothing.
func newTracer(endpoint string, log *slog.Logger) (*tracer, error) {
	if endpoint == "" {
		return nil, nil //nolint:nilnil // documented
	}
	client, err := otlp.New(endpoint)
	if err != nil {
		return nil, fmt.Errorf("--otlp-endpoint: %w", err)
	}
	return &tracer{client: client, log: log, waiting: make(chan []otlp.Span, tracesWaiting), told: map[types.NamespacedName]types.UID{}}, nil
}

// tell hands the trace of a migration over that has ended, once. The time is when to ask again for one whose observations may still come, 0 if there is nothing to wait for.
func (t *tracer) tell(pm *v1alpha1.PortMigration, now time.Time) (again time.Duration) {
	if t == nil {
		return 0
	}
	if t.since.IsZero() {
		t.since = now.Add(-tracesAgain)
	}
	key := nameOf(pm)
	if !pm.Status.Over() || t.told[key] == pm.UID {
		return 0
	}
	ended := endOf(&pm.Status)
	if ended.Before(t.since) {
		return 0 // the leader before told it
	}
	if left := observedWithin - now.Sub(ended); left > 0 && (pm.Status.Interruption == nil || pm.Status.Target == nil || pm.Status.Target.FirstFrame == nil) {
		return left
	}
	t.told[key] = pm.UID
	select {
	case t.waiting <- traceOf(pm):
	default:
		t.log.Warn("the trace of a migration is dropped: too many wait for the OTLP receiver", "namespace", pm.Namespace, "portmigration", pm.Name)
	}
	return 0
}

// forget ends the memory of a PortMigration that was deleted.
func (t *tracer) forget(key types.NamespacedName) {
	if t != nil {
		delete(t.told, key)
	}
}

// run sends until ctx ends.
func (t *tracer) run(ctx context.Context) error {
	if t == nil {
		return nil
	}
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case spans := <-t.waiting:
			err := t.send(ctx, spans)
			if err != nil && !failing && ctx.Err() == nil {
				t.log.Warn("traces of migrations are lost", "error", err)
			}
			failing = err != nil
		}
	}
}

func (t *tracer) send(ctx context.Context, spans []otlp.Span) error {
	err := t.client.Send(ctx, spans)
	for _, wait := range traceRetries() {
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		err = t.client.Send(ctx, spans)
	}
	return err
}

// endOf is when the last stage was reached.
func endOf(st *v1alpha1.PortMigrationStatus) (end time.Time) {
	for _, s := range st.Stages {
		if s.Time.After(end) {
			end = s.Time.Time
		}
	}
	return end
}

// traceID is a migration's UID, so that whoever knows the migration finds its trace; of a UID that is none, its hash.
func traceID(uid types.UID) (id [16]byte) {
	if n, err := hex.Decode(id[:], []byte(strings.ReplaceAll(string(uid), "-", ""))); err == nil && n == len(id) {
		return id
	}
	sum := sha256.Sum256([]byte(uid))
	copy(id[:], sum[:])
	return id
}

func spanID(uid types.UID, name string) (id [8]byte) {
	sum := sha256.Sum256([]byte(string(uid) + "/" + name))
	copy(id[:], sum[:])
	return id
}

// traceOf is a migration as spans: the whole, the stages that the controller saw, and what each agent saw. What is not known is left out.
func traceOf(pm *v1alpha1.PortMigration) []otlp.Span {
	st, uid := &pm.Status, pm.UID // of a migration whose target KubeVirt has made anew there are several records in one trace
	began, ok := st.Stage(v1alpha1.StageScheduled)
	if !ok {
		began = pm.CreationTimestamp.Time
	}
	root := otlp.Span{
		Service: serviceController, Name: "migration", Trace: traceID(pm.Spec.Migration.UID), ID: spanID(uid, "migration"), Start: began, End: endOf(st),
		Attributes: map[string]string{
			"k8s.namespace.name": pm.Namespace, "godwit.vm": pm.Spec.VMI.Name, "godwit.migration": pm.Spec.Migration.Name, "godwit.portmigration": pm.Name,
			"godwit.source.node": pm.Spec.Source.Node, "godwit.target.node": pm.Spec.Target.Node, "godwit.result": string(st.Result), "godwit.reason": st.Reason,
		},
	}
	if st.Result == v1alpha1.MigrationFailed {
		root.Failed = st.Reason + ": " + st.Message
	}
	spans := []otlp.Span{root}
	add := func(service, node, name string, from, to time.Time) *otlp.Span {
		if from.IsZero() || to.IsZero() {
			return nil
		}
		if to.Before(from) {
			to = from // two clocks
		}
		spans = append(spans, otlp.Span{Service: service, Node: node, Name: name, Trace: root.Trace, ID: spanID(uid, name), Parent: root.ID, Start: from, End: to})
		return &spans[len(spans)-1]
	}
	stage := func(name v1alpha1.StageName) time.Time { at, _ := st.Stage(name); return at }
	add(serviceController, "", "prepare", stage(v1alpha1.StageScheduled), stage(v1alpha1.StagePrepared))
	add(serviceController, "", "transfer", stage(v1alpha1.StagePrepared), stage(v1alpha1.StageActivated))
	add(serviceController, "", "commit", stage(v1alpha1.StageActivated), stage(v1alpha1.StageCommitted))
	add(serviceController, "", "roll back", stage(v1alpha1.StagePrepared), stage(v1alpha1.StageRolledBack))
	add(serviceController, "", "completion", stage(v1alpha1.StageCommitted), stage(v1alpha1.StageCompleted))
	agentSpans(pm, stage(v1alpha1.StagePrepared), add)
	return spans
}

// agentSpans adds what the agents saw: until when the VM was heard on the source, when OVN had installed the target's ports, the silence between, the announcement.
func agentSpans(pm *v1alpha1.PortMigration, prepared time.Time, add func(service, node, name string, from, to time.Time) *otlp.Span) {
	st := &pm.Status
	var last, announced time.Time
	if st.Source != nil {
		last = at(st.Source.LastFrame)
		add(serviceAgent, pm.Spec.Source.Node, "on source", prepared, last)
	}
	if st.Target == nil {
		return
	}
	node := pm.Spec.Target.Node
	announced = at(st.Target.Announced)
	add(serviceAgent, node, "attach target", prepared, at(st.Target.Attached))
	if s := add(serviceAgent, node, "announcement", announced, at(st.Target.FirstFrame)); s != nil {
		s.Attributes = map[string]string{"godwit.announced.by": map[bool]string{false: "vm", true: "agent"}[st.Target.AnnouncedByAgent]}
	}
	if st.Interruption == nil {
		return
	}
	length, err := time.ParseDuration(st.Interruption.Milliseconds + "ms")
	if err != nil {
		return
	}
	if s := add(serviceAgent, node, "interruption", last, last.Add(length)); s != nil {
		s.Attributes = map[string]string{"godwit.interruption.ms": st.Interruption.Milliseconds, "godwit.interruption.uncertainty.ms": st.Interruption.UncertaintyMilliseconds}
	}
}

func at(t *metav1.MicroTime) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}

func nameOf(pm *v1alpha1.PortMigration) types.NamespacedName {
	return types.NamespacedName{Namespace: pm.Namespace, Name: pm.Name}
}
