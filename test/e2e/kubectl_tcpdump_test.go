package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	plugin "github.com/godwit-cni/godwit/pkg/kubectl"
	"github.com/godwit-cni/godwit/test/lab/passage"
)

// tap is a `kubectl ovn tcpdump` that goes on.
type tap struct {
	out, said printed
	done      chan error
	stop      context.CancelFunc
}

// tapped runs it, and ends it with the test.
func tapped(t *testing.T, s *passage.Scene, args ...string) *tap {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	p := &tap{done: make(chan error, 1), stop: cancel}
	go func() {
		p.done <- kubectlOVNTo(ctx, &p.out, &p.said, append([]string{"-n", s.Namespace, "tcpdump"}, args...)...)
	}()
	return p
}

// await waits until it has printed words, and said others.
func (p *tap) await(t *testing.T, printed, said []string) {
	t.Helper()
	eventually(t, settleTimeout, func(context.Context) error {
		return errors.Join(mentions(p.out.String(), printed...), mentions(p.said.String(), said...))
	})
}

// pcapTimes are the times of a pcap's packets, which must be whole.
func pcapTimes(text string) ([]time.Time, error) {
	const header, packet = 24, 16
	b := []byte(text)
	if len(b) < header || binary.LittleEndian.Uint32(b) != 0xa1b2c3d4 {
		return nil, fmt.Errorf("what begins with %.24q is no pcap", text)
	}
	var all []time.Time
	for b = b[header:]; len(b) > 0; {
		if len(b) < packet {
			return all, fmt.Errorf("%d bytes are left behind packet %d", len(b), len(all))
		}
		seconds, micros, kept, long := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
		if micros >= 1e6 || kept > long || len(b) < packet+int(kept) {
			return all, fmt.Errorf("packet %d of %d bytes, %d of them kept, at %d.%06d", len(all), long, kept, seconds, micros)
		}
		all = append(all, time.Unix(int64(seconds), int64(micros)*1000))
		b = b[packet+int(kept):]
	}
	return all, nil
}

// nothingLeft waits until no tcpdump runs on any node.
func nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, settleTimeout, func(ctx context.Context) error {
		for _, node := range cluster.NodeNames() {
			out, err := cluster.Exec(ctx, node, "sh", "-c", "pidof tcpdump; true")
			if err != nil || strings.TrimSpace(out) != "" {
				return fmt.Errorf("on %s tcpdump is left: %s %w", node, out, err)
			}
		}
		return nil
	})
}

// An operator looks at a VM's packets while it moves: on the node where it is, on both for a while, on the other; as text, and as one pcap. Nothing is left on the nodes, however
// the looking ends.
func TestKubectlTcpdump(t *testing.T) {
	s := newScene(t, "tcpdump", 0)
	setScene(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	talking := make(chan error, 1)
	go func() { talking <- talk(ctx, s) }()
	echo := "tcp port " + strconv.Itoa(permittedEcho)
	text, packets := tapped(t, s, s.VM.Name, "--", "-v", echo), tapped(t, s, s.VM.Name, "--", "-w", "-", echo)
	text.await(t, []string{s.Source + ": "}, []string{s.VM.Name + " is on " + s.Source})
	packets.await(t, []string{"\xd4\xc3\xb2\xa1"}, nil)
	shuttle(t, s, 0)
	moved := time.Now()
	for _, p := range []*tap{text, packets} {
		p.await(t, nil, []string{s.VM.Name + " moves from " + s.Source + " to " + s.Target, s.VM.Name + " is on " + s.Target, s.Source + ": ", " packets captured"})
	}
	text.await(t, []string{s.Target + ": "}, nil)
	eventually(t, settleTimeout, func(context.Context) error {
		times, err := pcapTimes(packets.out.String())
		if err == nil && (len(times) == 0 || !slices.MaxFunc(times, time.Time.Compare).After(moved)) {
			err = fmt.Errorf("of %d packets none came after the migration", len(times))
		}
		return err
	})
	for _, p := range []*tap{text, packets} {
		p.stop()
		if err := <-p.done; err != nil {
			t.Errorf("%v: %s", err, p.said.String())
		}
	}
	t.Logf("kubectl ovn tcpdump %s said:\n%s", s.VM.Name, text.said.String())
	all := text.out.String()
	around := strings.Index(all, s.Target+": ")
	t.Logf("and printed, around the first line of %s:\n%s", s.Target, all[max(0, around-1000):min(len(all), around+1000)])
	nothingLeft(t)
	t.Run("ends by itself", func(t *testing.T) { tapEnds(t, s, echo) })
	t.Run("who looks is killed", func(t *testing.T) { tapKilled(t, s) })
	cancel()
	if err := <-talking; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// tapEnds: after so many packets, of a pod; and with tcpdump's code, of a filter that it does not understand.
func tapEnds(t *testing.T, s *passage.Scene, echo string) {
	few := tapped(t, s, "peer", "--", "-c", "3", "arp or ip or ip6")
	var ended error
	eventually(t, settleTimeout, func(ctx context.Context) error {
		select {
		case ended = <-few.done:
			return nil
		default:
		}
		return errors.Join(s.Guest.Ask.Await(ctx), fmt.Errorf("it does not end after 3 packets:\n%s\n%s", few.out.String(), few.said.String())) // the peer asks the guest
	})
	if lines := strings.Count(few.out.String(), "\n"); ended != nil || lines < 3 || strings.Contains(few.out.String(), "node") {
		t.Errorf("%d lines: %v:\n%s\n%s", lines, ended, few.out.String(), few.said.String())
	}
	var out, said printed
	err := kubectlOVNTo(t.Context(), &out, &said, "-n", s.Namespace, "tcpdump", s.VM.Name, "--", echo, "nonsense")
	if plugin.ExitCode(err) != 1 || mentions(said.String(), "syntax error") != nil {
		t.Errorf("a filter that means nothing: %v: %s", err, said.String())
	}
	nothingLeft(t)
}

// tapKilled kills who asked for it, so that nobody closes anything.
func tapKilled(t *testing.T, s *passage.Scene) {
	out, err := kubectl(t.Context(), "-n", "godwit-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName="+s.Target, "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		t.Fatal(err)
	}
	var said printed
	cmd := exec.CommandContext(t.Context(), cluster.kubectl, "--kubeconfig", cluster.Kubeconfig(), "-n", "godwit-system", "exec", "-i", out, "--",
		"godwit-agent", "tcpdump", "--port", "vm/"+s.Namespace+"/"+s.VM.Name+"/default", "--", "-n", "icmp")
	cmd.Stdout, cmd.Stderr = &said, &said
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, settleTimeout, func(context.Context) error { return mentions(said.String(), "listening on ") })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	_ = cmd.Wait() // killed
	nothingLeft(t)
}
