package echo

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// parallel is how many targets are asked at the same time.
const parallel = 64

// Result is the answer of one target.
type Result struct {
	// Target is the URL: tcp://HOST:PORT, udp://HOST:PORT or http://HOST:PORT/PATH. tcp://HOST:PORT/TEXT sends the text, else "probe".
	Target string
	// Took is the time from the first packet to the whole answer.
	Took time.Duration
	// Answer is the target's first line, without its end.
	Answer string
	// Err is nil when the target answered.
	Err error
}

// String is the result as one line: "ok TARGET TOOK ANSWER" or "failed TARGET TOOK ERROR".
func (r Result) String() string {
	took := r.Took.Round(10 * time.Microsecond)
	if r.Err != nil {
		return fmt.Sprintf("failed %s %s %v", r.Target, took, r.Err)
	}
	return fmt.Sprintf("ok %s %s %s", r.Target, took, r.Answer)
}

// Probe asks all targets, each within timeout, in which a datagram that is not answered is sent again as TCP does it with what is lost, and returns their results in the same order.
func Probe(ctx context.Context, timeout time.Duration, targets []string) []Result {
	return slices.Concat(ProbeTimes(ctx, timeout, 1, targets)...)
}

// ProbeTimes asks all targets, each so many times one after another, or until it fails for the first time; each time within timeout, on a connection of its own. The results are
// in the order of the targets.
func ProbeTimes(ctx context.Context, timeout time.Duration, times int, targets []string) [][]Result {
	results := make([][]Result, len(targets))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, target := range targets {
		g.Go(func() error {
			results[i] = untilItFails(times, func() Result { return once(ctx, timeout, target) })
			return nil
		})
	}
	_ = g.Wait() // failures are results
	return results
}

func untilItFails(times int, try func() Result) (results []Result) {
	for range times {
		results = append(results, try())
		if results[len(results)-1].Err != nil {
			break
		}
	}
	return results
}

func once(ctx context.Context, timeout time.Duration, target string) Result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	answer, err := ask(ctx, target)
	return Result{Target: target, Took: time.Since(start), Answer: answer, Err: err}
}

func ask(ctx context.Context, target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	switch u.Scheme {
	case "http":
		return askHTTP(ctx, target)
	case "tcp", "udp":
		return askLine(ctx, u.Scheme, u.Host, cmp.Or(strings.TrimPrefix(u.Path, "/"), "probe"))
	}
	return "", fmt.Errorf("scheme %q: want tcp, udp or http", u.Scheme)
}

func askHTTP(ctx context.Context, target string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", err
	}
	// A connection of its own for each question: whether new connections work is what is asked.
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(body), "\n")
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s: %s", resp.Status, first)
	}
	return first, nil
}

func askLine(ctx context.Context, network, addr, text string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if network == "udp" {
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		return exchange(ctx, conn, text)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(conn, text+"\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(line, "\n"), nil
}
