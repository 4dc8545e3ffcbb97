package otlp

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

func TestSend(t *testing.T) {
	var got tracepb.TracesData
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			http.Error(w, "this is no OTLP", http.StatusBadRequest)
			return
		}
		if err := proto.Unmarshal(body, &got); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}))
	defer server.Close()
	c, err := New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Unix(1_000_000_000, 5000)
	err = c.Send(t.Context(), []Span{
		{Service: "godwit-controller", Name: "migration", Trace: [16]byte{1}, ID: [8]byte{2}, Start: start, End: start.Add(time.Second), Attributes: map[string]string{"b": "2", "a": "1"}, Failed: "it was aborted"},
		{Service: "godwit-agent", Node: "node2", Name: "attach", Trace: [16]byte{1}, ID: [8]byte{3}, Parent: [8]byte{2}, Start: start, End: start},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `
resource_spans: {
  resource: {attributes: {key: "service.name" value: {string_value: "godwit-controller"}} attributes: {key: "service.namespace" value: {string_value: "godwit"}}}
  scope_spans: {scope: {name: "github.com/godwit-cni/godwit"} spans: {
    trace_id: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" span_id: "\x02\x00\x00\x00\x00\x00\x00\x00" name: "migration" kind: SPAN_KIND_INTERNAL
    start_time_unix_nano: 1000000000000005000 end_time_unix_nano: 1000000001000005000
    attributes: {key: "a" value: {string_value: "1"}} attributes: {key: "b" value: {string_value: "2"}} status: {code: STATUS_CODE_ERROR message: "it was aborted"}
  }}
}
resource_spans: {
  resource: {attributes: {key: "service.name" value: {string_value: "godwit-agent"}} attributes: {key: "service.namespace" value: {string_value: "godwit"}} attributes: {key: "k8s.node.name" value: {string_value: "node2"}}}
  scope_spans: {scope: {name: "github.com/godwit-cni/godwit"} spans: {
    trace_id: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" span_id: "\x03\x00\x00\x00\x00\x00\x00\x00" parent_span_id: "\x02\x00\x00\x00\x00\x00\x00\x00" name: "attach" kind: SPAN_KIND_INTERNAL
    start_time_unix_nano: 1000000000000005000 end_time_unix_nano: 1000000000000005000 status: {code: STATUS_CODE_OK}
  }}
}`
	var expected tracepb.TracesData
	if err := prototext.Unmarshal([]byte(want), &expected); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&expected, &got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestSendRefused(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	c, err := New(server.URL + "/elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "/elsewhere") || !strings.Contains(err.Error(), "404") {
		t.Errorf("with a path that is not there: %v", err)
	}
	server.Close()
	if err := c.Send(t.Context(), nil); err == nil {
		t.Error("nobody listens, and there is no error")
	}
}

// What of an endpoint may be secret is sent, and is in no error.
func TestSecretsAreNotTold(t *testing.T) {
	const user, token, key = "somebody", "s3cret", "k3y"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != token || r.URL.Query().Get("key") != key {
			t.Errorf("%s %s %s came", u, p, r.URL)
		}
		http.Error(w, "no", http.StatusUnauthorized)
	}))
	endpoint := strings.Replace(server.URL, "//", "//"+user+":"+token+"@", 1) + "?key=" + key
	c, err := New(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	refused := c.Send(t.Context(), nil)
	server.Close()
	unheard := c.Send(t.Context(), nil)
	_, bad := New("grpc" + strings.TrimPrefix(endpoint, "http"))
	_, worse := New("http://" + user + ":" + token + " @" + strings.TrimPrefix(server.URL, "http://"))
	_, schemeless := New(strings.TrimPrefix(endpoint, "http://"))
	for name, err := range map[string]error{"refused": refused, "nobody listens": unheard, "no OTLP": bad, "no URL": worse, "no scheme": schemeless} {
		if err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(server.URL, "http://")) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, secret := range []string{user, token, key} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %s is in %v", name, secret, err)
			}
		}
	}
}

func TestShown(t *testing.T) {
	for endpoint, want := range map[string]string{
		"https://collector:4318":                    "https://collector:4318",
		"https://somebody:s3cret@collector:4318/x":  "https://…collector:4318/x",
		"https://collector:4318/x?key=k3y":          "https://collector:4318/x…",
		"https://collector:4318/x?key=k@3y":         "https://…",
		"https://somebody:s3?cret@collector:4318/x": "https://…",
	} {
		if got := strings.ReplaceAll(Shown(endpoint), "@", ""); !strings.HasPrefix(got, want) || strings.Contains(got, "3y") || strings.Contains(got, "cret") {
			t.Errorf("%s is shown as %s, want %s", endpoint, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, bad := range []string{"", "collector:4318", "grpc://collector:4317", "http://", "http://a b"} {
		if _, err := New(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
