package integration

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/godwit-cni/godwit/pkg/controller"
)

// TestObserveTrace: an OTLP receiver gets the trace of a migration by its UID, with the stages that the controller saw; no agent is there to say more.
func TestObserveTrace(t *testing.T) {
	t.Parallel()
	got := make(chan *tracepb.TracesData, 8)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var data tracepb.TracesData
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, &data)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		got <- &data
	}))
	defer receiver.Close()
	e := newEnv(t)
	e.installKubeVirt(t)
	e.start(t, func(c *controller.Config) { c.OTLPEndpoint = receiver.URL })
	for _, n := range []string{"n1", "n2"} {
		e.node(t, n)
		e.central.Chassis(t, n)
	}
	e.defaultSubnet(t)
	e.namespace(t, "move", nil)
	began := time.Now()
	v := e.voyage(t, "traced", "db")
	v.begin(t, e)
	v.arrive(t, e)
	want, err := hex.DecodeString(strings.ReplaceAll(string(v.vmim.UID), "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case data := <-got:
		var names []string
		for _, rs := range data.GetResourceSpans() {
			for _, s := range rs.GetScopeSpans()[0].GetSpans() {
				names = append(names, s.GetName())
				if !bytes.Equal(s.GetTraceId(), want) {
					t.Errorf("span %s is of trace %x, the migration is %s", s.GetName(), s.GetTraceId(), v.vmim.UID)
				}
				if from, to := time.Unix(0, int64(s.GetStartTimeUnixNano())), time.Unix(0, int64(s.GetEndTimeUnixNano())); from.Before(began) || to.After(time.Now()) || to.Before(from) { //nolint:gosec // they are of now
					t.Errorf("span %s is from %s to %s", s.GetName(), from, to)
				}
			}
		}
		if len(names) == 0 || names[0] != "migration" || !slices.Contains(names, "prepare") || !slices.Contains(names, "completion") {
			t.Errorf("the trace has the spans %v", names)
		}
	case <-time.After(5 * time.Minute): // ten seconds for what agents might say, and a slow machine
		t.Fatal("no trace came")
	}
}
