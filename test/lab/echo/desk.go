package echo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// DeskPort is the usual port of a desk.
const DeskPort = 8008

const (
	// maxQuestions bounds a request, deskTimeout the time for one and its answer.
	maxQuestions = 256 << 10
	deskTimeout  = 2 * time.Minute
)

// Order is what a desk is asked for.
type Order struct {
	Questions []Question `json:"questions"`
	// Every is how much later than the last time a question is asked again.
	Every time.Duration `json:"every"`
}

// desk asks for others, from where it is: in a guest, which nothing else of a test can enter. One inquiry at a time.
//
//	POST   /inquiry   an Order; begins it, and ends the one before
//	GET    /inquiry   Tallies up to now
//	DELETE /inquiry   Tallies, and ends it
type desk struct {
	repeat  func(Order) *Inquiry
	mu      sync.Mutex
	inquiry *Inquiry
}

func serveDesk(ctx context.Context, l net.Listener) error {
	d := &desk{repeat: func(o Order) *Inquiry {
		var dialer net.Dialer
		return Repeat(ctx, dialer.DialContext, o.Questions, o.Every)
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /inquiry", d.begin)
	mux.HandleFunc("GET /inquiry", func(w http.ResponseWriter, _ *http.Request) { d.answer(w, (*Inquiry).Tallies) })
	mux.HandleFunc("DELETE /inquiry", func(w http.ResponseWriter, _ *http.Request) { d.answer(w, (*Inquiry).Stop) })
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout, Handler: mux}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve questions: %w", err)
	}
	return nil
}

func (d *desk) begin(w http.ResponseWriter, r *http.Request) {
	var o Order
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestions)).Decode(&o); err != nil {
		http.Error(w, fmt.Sprintf("read the order: %v", err), http.StatusBadRequest)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inquiry != nil {
		d.inquiry.cancel()
	}
	d.inquiry = d.repeat(o)
	w.WriteHeader(http.StatusCreated)
}

func (d *desk) answer(w http.ResponseWriter, tallies func(*Inquiry) []Tally) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inquiry == nil {
		http.Error(w, "nothing was ordered", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(tallies(d.inquiry)) // a client that is gone misses it
}

// Desk is a client of the desk at an address. Every request has a connection of its own. It is safe for concurrent use.
type Desk struct {
	url  string
	http *http.Client
}

// NewDesk returns a client whose connections dial makes.
func NewDesk(dial Dial, addr netip.AddrPort) *Desk {
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	return &Desk{url: "http://" + addr.String() + "/inquiry", http: &http.Client{Transport: transport, Timeout: deskTimeout}}
}

// Begin lets the desk begin, and end what it did before.
func (d *Desk) Begin(ctx context.Context, o Order) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = d.do(ctx, http.MethodPost, body)
	return err
}

// Tallies are what has become of the questions up to now, in their order.
func (d *Desk) Tallies(ctx context.Context) ([]Tally, error) { return d.do(ctx, http.MethodGet, nil) }

// End is Tallies, and nothing is asked any more.
func (d *Desk) End(ctx context.Context) ([]Tally, error) { return d.do(ctx, http.MethodDelete, nil) }

func (d *Desk) do(ctx context.Context, method string, body []byte) (tallies []Tally, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s: %w", method, d.url, err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, method, d.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode >= http.StatusBadRequest:
		return nil, fmt.Errorf("status %s: %s", resp.Status, strings.TrimSpace(string(b)))
	case len(b) == 0:
		return nil, nil
	}
	return tallies, json.Unmarshal(b, &tallies)
}
