package echo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// resend is how long a datagram's answer is waited for before the datagram is sent again.
const resend = 500 * time.Millisecond

// Question is a target that is asked over and over.
type Question struct {
	// Target is the URL: tcp://HOST:PORT or udp://HOST:PORT, HOST an address, or a name that the asker can resolve.
	Target string `json:"target"`
	// Within is how long an answer may take. What is lost meanwhile is sent again, by TCP or by Repeat.
	Within time.Duration `json:"within"`
}

// Tally is what became of a Question. Asked = Answered + what was not answered in time.
type Tally struct {
	Target string `json:"target"`
	Asked  int    `json:"asked"`
	// Connected were established, whether answered or not: over TCP by the handshake, over UDP by the answer.
	Connected int `json:"connected"`
	Answered  int `json:"answered"`
	// Slowest of the answers.
	Slowest time.Duration `json:"slowest"`
	// Failure is the last of those that were not answered, empty if all were.
	Failure string `json:"failure,omitempty"`
}

// String says it in a line.
func (t Tally) String() string {
	s := fmt.Sprintf("%s: asked %d times, %d connections, %d answers, the slowest after %s", t.Target, t.Asked, t.Connected, t.Answered, t.Slowest.Round(time.Millisecond))
	if t.Failure != "" {
		s += "; not answered: " + t.Failure
	}
	return s
}

// Dial is net.Dialer.DialContext, or one like it that makes its sockets elsewhere.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// Inquiry asks questions over and over, each on a connection of its own every time. Its methods may be called concurrently.
type Inquiry struct {
	dial   Dial
	every  time.Duration
	over   chan struct{}
	stop   func()
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	tallies []Tally
}

// Repeat begins to ask every question, one time after the other, beginning at least so much later than the time before, until ctx ends or Stop is called.
func Repeat(ctx context.Context, dial Dial, questions []Question, every time.Duration) *Inquiry {
	q := &Inquiry{dial: dial, every: every, over: make(chan struct{}), tallies: make([]Tally, len(questions))}
	q.stop = sync.OnceFunc(func() { close(q.over) })
	ctx, q.cancel = context.WithCancel(ctx)
	for i, question := range questions {
		q.tallies[i].Target = question.Target
		q.done.Go(func() { q.repeat(ctx, i, question) })
	}
	return q
}

// Tallies are what has become of the questions up to now, in their order.
func (q *Inquiry) Tallies() []Tally {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]Tally(nil), q.tallies...)
}

// Stop ends the asking: nothing more is asked, and it returns when what is being asked is answered or may take no longer.
func (q *Inquiry) Stop() []Tally {
	q.stop()
	q.done.Wait()
	q.cancel()
	return q.Tallies()
}

func (q *Inquiry) repeat(ctx context.Context, i int, question Question) {
	for ctx.Err() == nil {
		select {
		case <-q.over:
			return
		default:
		}
		next := time.After(q.every)
		start := time.Now()
		a := answer{}
		a.connected, a.err = question.ask(ctx, q.dial)
		a.took = time.Since(start)
		if ctx.Err() != nil {
			return
		}
		q.count(i, a)
		select {
		case <-next:
		case <-q.over:
			return
		case <-ctx.Done():
			return
		}
	}
}

// answer is what came of asking once.
type answer struct {
	connected bool
	took      time.Duration
	err       error
}

func (q *Inquiry) count(i int, a answer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := &q.tallies[i]
	t.Asked++
	if a.connected {
		t.Connected++
	}
	if a.err != nil {
		t.Failure = a.err.Error()
		return
	}
	t.Answered++
	t.Slowest = max(t.Slowest, a.took)
}

// ask asks once.
func (q Question) ask(ctx context.Context, dial Dial) (connected bool, err error) {
	u, err := url.Parse(q.Target)
	if err != nil {
		return false, err
	}
	if u.Scheme != "tcp" && u.Scheme != "udp" {
		return false, fmt.Errorf("scheme %q: want tcp or udp", u.Scheme)
	}
	ctx, cancel := context.WithTimeout(ctx, q.Within)
	defer cancel()
	conn, err := dial(ctx, u.Scheme, u.Host)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if u.Scheme == "tcp" {
		if _, err := io.WriteString(conn, "probe\n"); err != nil {
			return true, err
		}
		_, err := bufio.NewReader(conn).ReadString('\n') // all of it: to close it with something unread would reset it
		return true, err
	}
	_, err = exchange(ctx, conn, "probe")
	return err == nil, err
}

// exchange sends a line as a datagram, over and over until one is answered, and returns the first line of the answer.
func exchange(ctx context.Context, conn net.Conn, text string) (string, error) {
	var last error
	answer := make([]byte, 64<<10)
	for ctx.Err() == nil {
		round := time.Now().Add(resend)
		err := conn.SetReadDeadline(round)
		if err == nil {
			_, err = io.WriteString(conn, text+"\n")
		}
		var n int
		if err == nil {
			n, err = conn.Read(answer)
		}
		if err == nil {
			line, _, _ := strings.Cut(string(answer[:n]), "\n")
			return line, nil
		}
		if last == nil || !errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			last = err
		}
		select { // an ICMP error came at once
		case <-time.After(time.Until(round)):
		case <-ctx.Done():
		}
	}
	if last == nil {
		return "", ctx.Err()
	}
	return "", fmt.Errorf("%w: %w", ctx.Err(), last) // in one line
}
