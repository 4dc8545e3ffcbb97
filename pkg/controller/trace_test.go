package controller

import (
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// traced is a migration that is over, its times in milliseconds since it began.
func traced() *v1alpha1.PortMigration {
	at := func(ms int) *metav1.MicroTime {
		return &metav1.MicroTime{Time: time.Unix(1_000_000_000, 0).Add(time.Duration(ms) * time.Millisecond)}
	}
	pm := &v1alpha1.PortMigration{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "m-1", UID: "u1"}}
	pm.Spec.VMI.Name, pm.Spec.Migration = "web", v1alpha1.ObjectName{Name: "m", UID: "0f4eb5c1-7c9e-4a54-9d8e-2b0c1ac1c101"}
	pm.Spec.Source.Node, pm.Spec.Target.Node = "node1", "node2"
	pm.Status.Result, pm.Status.Reason = v1alpha1.MigrationSucceeded, "MigrationSucceeded"
	for name, ms := range map[v1alpha1.StageName]int{
		v1alpha1.StageScheduled: 0, v1alpha1.StagePrepared: 16, v1alpha1.StageActivated: 2713, v1alpha1.StageReady: 2952, v1alpha1.StageCommitted: 2956, v1alpha1.StageCompleted: 3882,
	} {
		pm.Status.Stages = append(pm.Status.Stages, v1alpha1.Stage{Name: name, Time: *at(ms)})
	}
	pm.Status.Source = &v1alpha1.Observation{LastFrame: at(2622)}
	pm.Status.Target = &v1alpha1.Observation{Attached: at(494), Announced: at(2686), FirstFrame: at(3142)}
	pm.Status.Interruption = &v1alpha1.Interruption{Milliseconds: "63.8", UncertaintyMilliseconds: "0.4"}
	return pm
}

// receiver is an OTLP receiver: what it gets comes as lines, "service@node name from–to", in order.
func receiver(t *testing.T, status int) (url string, got chan []string) {
	t.Helper()
	got = make(chan []string, 8)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var data tracepb.TracesData
		if err == nil {
			err = proto.Unmarshal(body, &data)
		}
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(status)
		got <- linesOf(&data)
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

func linesOf(data *tracepb.TracesData) []string {
	var out []string
	for _, rs := range data.GetResourceSpans() {
		who := map[string]string{}
		for _, a := range rs.GetResource().GetAttributes() {
			who[a.GetKey()] = a.GetValue().GetStringValue()
		}
		for _, s := range rs.GetScopeSpans()[0].GetSpans() {
			ms := func(ns uint64) float64 { return float64(ns-1_000_000_000_000_000_000) / 1e6 }
			line := fmt.Sprintf("%s@%s %s %.1f–%.1f", who["service.name"], who["k8s.node.name"], s.GetName(), ms(s.GetStartTimeUnixNano()), ms(s.GetEndTimeUnixNano()))
			if len(s.GetParentSpanId()) == 0 {
				line += " trace " + hex.EncodeToString(s.GetTraceId())
			}
			if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
				line += " failed: " + s.GetStatus().GetMessage()
			}
			out = append(out, line)
		}
	}
	return out
}

// TestTrace: a receiver gets one trace of a migration, with the times of the controller and of both agents, whose id is the migration's UID; once.
func TestTrace(t *testing.T) {
	url, got := receiver(t, http.StatusOK)
	tr, err := newTracer(url, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = tr.run(t.Context()) }()
	pm := traced()
	now := endOf(&pm.Status).Add(time.Second)
	for range 2 {
		if again := tr.tell(pm, now); again != 0 {
			t.Errorf("a migration whose record is complete is to be looked at again in %s", again)
		}
	}
	want := []string{
		"godwit-controller@ migration 0.0–3882.0 trace 0f4eb5c17c9e4a549d8e2b0c1ac1c101", "godwit-controller@ prepare 0.0–16.0", "godwit-controller@ transfer 16.0–2713.0",
		"godwit-controller@ commit 2713.0–2956.0", "godwit-controller@ completion 2956.0–3882.0", "godwit-agent@node1 on source 16.0–2622.0", "godwit-agent@node2 attach target 16.0–494.0",
		"godwit-agent@node2 announcement 2686.0–3142.0", "godwit-agent@node2 interruption 2622.0–2685.8",
	}
	if diff := cmp.Diff(want, <-got); diff != "" {
		t.Error(diff)
	}
	tr.forget(nameOf(pm)) // as when it is deleted, and one of the name is made anew
	tr.tell(pm, now)
	if lines := <-got; !slices.Equal(lines, want) {
		t.Errorf("then %v", lines)
	}
	if len(got) > 0 {
		t.Error("it was told too often")
	}
}

// TestTraceWaits: what agents saw may come after the end, and is waited for, but not for ever; what runs, and what ended before, is not told.
func TestTraceWaits(t *testing.T) {
	tr, err := newTracer("http://127.0.0.1:1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	pm := traced()
	end := endOf(&pm.Status)
	pm.Status.Result = v1alpha1.MigrationRunning
	if again := tr.tell(pm, end); again != 0 || len(tr.waiting) != 0 {
		t.Errorf("one that runs: again in %s, %d told", again, len(tr.waiting))
	}
	pm.Status.Result, pm.Status.Reason, pm.Status.Message, pm.Status.Interruption, pm.Status.Target = v1alpha1.MigrationFailed, "MigrationAborted", "somebody gave it up", nil, nil
	if again := tr.tell(pm, end.Add(4*time.Second)); again != 6*time.Second || len(tr.waiting) != 0 {
		t.Errorf("one whose target nobody saw: again in %s, %d told", again, len(tr.waiting))
	}
	if again := tr.tell(pm, end.Add(10*time.Second)); again != 0 || len(tr.waiting) != 1 {
		t.Errorf("the same later: again in %s, %d told", again, len(tr.waiting))
	}
	if spans := <-tr.waiting; spans[0].Failed != "MigrationAborted: somebody gave it up" || len(spans) != 6 {
		t.Errorf("%+v", spans)
	}
	old := traced()
	old.Name = "m-0"
	for i := range old.Status.Stages {
		old.Status.Stages[i].Time = metav1.NewMicroTime(end.Add(-2 * time.Minute))
	}
	if again := tr.tell(old, end); again != 0 || len(tr.waiting) != 0 {
		t.Errorf("one that the leader before told: again in %s, %d told", again, len(tr.waiting))
	}
	var none *tracer
	none.forget(nameOf(pm))
	if none.tell(pm, end) != 0 || none.run(t.Context()) != nil {
		t.Error("without a receiver something is done")
	}
}

// TestTraceRefused: what is no receiver is refused at the start; one that refuses is asked again.
func TestTraceRefused(t *testing.T) {
	if _, err := newTracer("collector:4317", nil); err == nil || !strings.Contains(err.Error(), "--otlp-endpoint") {
		t.Errorf("an address that is none: %v", err)
	}
	url, got := receiver(t, http.StatusServiceUnavailable)
	tr, err := newTracer(url, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- tr.send(t.Context(), traceOf(traced())) }()
	<-got
	<-got // a second later
	if len(done) > 0 {
		t.Error("it was not tried again")
	}
}

// TestTraceOfATargetThatIsMadeAnew: both records of a migration are in its trace, and no span is twice in it.
func TestTraceOfATargetThatIsMadeAnew(t *testing.T) {
	first, second := traced(), traced()
	second.UID = "u2"
	seen := map[[8]byte]bool{}
	for _, s := range slices.Concat(traceOf(first), traceOf(second)) {
		if seen[s.ID] || s.Trace != traceID(first.Spec.Migration.UID) {
			t.Errorf("span %s has an id of another, or is in another trace", s.Name)
		}
		seen[s.ID] = true
	}
}
