// Package otlp sends traces to an OpenTelemetry collector, or whatever else takes OTLP by HTTP: protobuf, as the specification has it (opentelemetry.io/docs/specs/otlp). The
// spans are of things that are over when they are sent, so there is nothing of OpenTelemetry's SDK here: no context is carried, nothing is sampled.
package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// sendTimeout bounds one request.
	sendTimeout = 5 * time.Second
	// answerLimit is how much of a refusal is read.
	answerLimit = 1 << 10
	tracesPath  = "/v1/traces"
)

// Span is something that took a while.
type Span struct {
	// Service is who measured it, Node where; the node is empty for what is of the cluster.
	Service, Node string
	Name          string
	Trace         [16]byte
	// ID is the span's; Parent is all zeroes of the trace's root.
	ID, Parent [8]byte
	Start, End time.Time
	// Attributes by their names.
	Attributes map[string]string
	// Failed: it did not come to a good end, and why; empty if it did.
	Failed string
}

// Client sends spans. Safe for concurrent use.
type Client struct {
	url string
	// shown is url for logs.
	shown string
	http  *http.Client
}

// secrets are what may be one in a URL: a user with a password, or a token in either's place; a query.
var secrets = regexp.MustCompile(`^([a-z]+://)?(?:[^?]*\?.*@.*|[^?]*@)|\?.*`)

// Shown is an endpoint, or another setting that may be a URL, without what may be secret, for logs and reports.
func Shown(endpoint string) string { return secrets.ReplaceAllString(endpoint, "$1…") }

// New makes a client of an endpoint, http://HOST:PORT or https://HOST:PORT; with a path, that is used instead of /v1/traces.
func New(endpoint string) (*Client, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is not http://HOST:PORT or https://HOST:PORT of an OTLP receiver (its HTTP port, usually 4318)", Shown(endpoint))
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = tracesPath
	}
	return &Client{url: u.String(), shown: Shown(u.String()), http: &http.Client{Timeout: sendTimeout}}, nil
}

// Send sends spans, which may be sent again: their ids say that they are the same.
func (c *Client) Send(ctx context.Context, spans []Span) error {
	body, err := proto.Marshal(request(spans))
	if err != nil {
		return fmt.Errorf("encode %d spans: %w", len(spans), err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return c.failed(err)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.failed(err)
	}
	said, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	err = errors.Join(err, resp.Body.Close())
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("send spans to %s: it answers %s: %q: is that an OTLP receiver's HTTP port?", c.shown, resp.Status, strings.ToValidUTF8(string(said), "?"))
	}
	return err
}

// failed is an error of a request that was not answered, which says where to as logs may have it.
func (c *Client) failed(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		err = of.Err // of.URL is all of it
	}
	return fmt.Errorf("send spans to %s: %w", c.shown, err)
}

// request has the fields of ExportTraceServiceRequest, which are those of TracesData: one list of spans for each who measured.
func request(spans []Span) *tracepb.TracesData {
	out := &tracepb.TracesData{}
	for _, s := range spans {
		who := []*commonpb.KeyValue{attribute("service.name", s.Service), attribute("service.namespace", "godwit")}
		if s.Node != "" {
			who = append(who, attribute("k8s.node.name", s.Node))
		}
		span := &tracepb.Span{
			TraceId: s.Trace[:], SpanId: s.ID[:], Name: s.Name, Kind: tracepb.Span_SPAN_KIND_INTERNAL,
			StartTimeUnixNano: nanoseconds(s.Start), EndTimeUnixNano: nanoseconds(s.End), Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_OK},
		}
		if s.Parent != ([8]byte{}) {
			span.ParentSpanId = s.Parent[:]
		}
		if s.Failed != "" {
			span.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: s.Failed}
		}
		for k, v := range s.Attributes {
			span.Attributes = append(span.Attributes, attribute(k, v))
		}
		slices.SortFunc(span.Attributes, func(a, b *commonpb.KeyValue) int { return strings.Compare(a.GetKey(), b.GetKey()) })
		out.ResourceSpans = append(out.ResourceSpans, &tracepb.ResourceSpans{
			Resource:   &resourcepb.Resource{Attributes: who},
			ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "github.com/godwit-cni/godwit"}, Spans: []*tracepb.Span{span}}},
		})
	}
	return out
}

func attribute(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

// nanoseconds since 1970, which no clock that works is before.
func nanoseconds(t time.Time) uint64 { return uint64(max(0, t.UnixNano())) } //nolint:gosec // not negative
