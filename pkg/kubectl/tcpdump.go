package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/godwit-cni/godwit/pkg/errand"
)

// Waits of `kubectl ovn tcpdump`.
const (
	// lookAgain is the pause before a node is asked anew: the link is gone and another may come, or the connection was lost.
	lookAgain = time.Second
	// farewell is how long tcpdump on a node may take to end and to say what it has counted.
	farewell = 3 * time.Second
)

func (s *session) tcpdumpCommand() *cobra.Command {
	var nic string
	cmd := &cobra.Command{
		Use: "tcpdump VM|POD [--nic NAME] [-- ARGS]", Args: cobra.MinimumNArgs(1), ValidArgsFunction: s.complete(vmsAndPods),
		Short: "See a VM's or a pod's packets, wherever it is",
		Long: `tcpdump runs tcpdump on the interface of a VM or of a pod, on the node that has it, by that node's agent, and prints what it prints; times are UTC. It follows a VM that moves: while it does, both nodes
show what they see, and each line has the node before it. What the VM is sent between its announcement and the end is seen twice, for OVN sends it to both.

ARGS are tcpdump's, a filter among them, after -- where they begin with a dash. -w - writes pcap to standard output, one file whatever the VM does; options about files and interfaces are refused.
-c N ends it with the first node that has seen N packets. Nothing goes on on the node when the command ends, however it ends.
This needs the right to create pods/exec in the namespace of Godwit.`,
		Example: "  kubectl ovn tcpdump web1\n  kubectl ovn tcpdump web1 -- -e -c 20 tcp port 80 or arp\n  kubectl ovn tcpdump web1 --nic storage -- -w - >web1.pcap\n  kubectl ovn tcpdump web1 -- -w - | wireshark -k -i -",
		RunE: func(cmd *cobra.Command, args []string) error {
			given, binary, err := errand.Tcpdump(args[1:])
			if err != nil {
				return err
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			v, err := c.viewOf(cmd.Context(), args[0], nic)
			if err != nil {
				return err
			}
			f := newFollower(c, v, given, streams{out: cmd.OutOrStdout(), messages: cmd.ErrOrStderr(), binary: binary})
			err = f.run(cmd.Context())
			var exit *ExitError
			cmd.SilenceErrors = errors.As(err, &exit) // tcpdump has said itself what is wrong
			return err
		},
	}
	cmd.Flags().StringVar(&nic, "nic", "", "the interface, where there are several: a VM's network, or a pod's link; the one on the pod network if empty")
	return cmd
}

// streams are where a follower writes; binary: packets as pcap, not text.
type streams struct {
	out, messages io.Writer
	binary        bool
}

// follower looks at a view on each node on which it is.
type follower struct {
	cluster
	view view
	args []string
	// shown and said make the writers of a node.
	shown, said func(node string) io.Writer
	messages    *lines
	// begun: some node's tcpdump has said something, so that what is wrong now is not the command.
	begun atomic.Bool
	told  string
	// looks are what ends the looking at a node; ended has what became of tcpdump where it ended by itself.
	looks map[string]context.CancelFunc
	ended chan error
	all   sync.WaitGroup
}

func newFollower(c cluster, v view, args []string, to streams) *follower {
	f := &follower{cluster: c, view: v, args: args, messages: &lines{out: to.messages}, looks: map[string]context.CancelFunc{}, ended: make(chan error)}
	mark := func(node string) string {
		if !v.moves() {
			return ""
		}
		return node + ": "
	}
	text, packets := &lines{out: to.out}, &pcaps{out: to.out}
	f.shown = func(node string) io.Writer { return text.stream(mark(node)) }
	if to.binary {
		f.shown = func(string) io.Writer { return packets.stream() }
	}
	f.said = func(node string) io.Writer { return marking{f.messages.stream(mark(node)), &f.begun} }
	return f
}

// marking notes that something was written.
type marking struct {
	io.Writer
	mark *atomic.Bool
}

// Write implements io.Writer.
func (m marking) Write(b []byte) (int, error) {
	m.mark.Store(true)
	return m.Writer.Write(b)
}

// run follows the view until tcpdump ends on a node, what is looked at is no more, or ctx ends, which are no errors.
func (f *follower) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer f.all.Wait()
	defer cancel()
	changed := f.changes(ctx, f.view.kinds()...)
	for {
		at, err := f.place(ctx, f.view)
		switch {
		case ctx.Err() != nil, errors.Is(err, errOver):
			return nil
		case err != nil && !f.begun.Load():
			return err
		case err != nil:
			f.tell(err.Error() + ": trying again")
		default:
			f.tell(at.text(f.view))
			f.adjust(ctx, at.nodes)
		}
		var again <-chan time.Time
		if err != nil {
			again = time.After(lookAgain)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		case err := <-f.ended:
			return err
		}
	}
}

// tell says what has changed, with the time.
func (f *follower) tell(text string) {
	if text == f.told {
		return
	}
	f.told = text
	_, _ = fmt.Fprintf(f.messages.stream(""), "%s %s\n", time.Now().UTC().Format("15:04:05.000000"), text)
}

// adjust has these nodes looked at, and no others.
func (f *follower) adjust(ctx context.Context, nodes []string) {
	for node, stop := range f.looks {
		if !slices.Contains(nodes, node) {
			stop()
			delete(f.looks, node)
		}
	}
	for _, node := range nodes {
		if f.looks[node] != nil {
			continue
		}
		mine, stop := context.WithCancel(ctx)
		f.looks[node] = stop
		f.all.Go(func() {
			defer stop()
			err := f.look(mine, node)
			if mine.Err() != nil {
				return // told to end
			}
			select {
			case f.ended <- err:
			case <-ctx.Done():
			}
		})
	}
}

// look looks at the view on a node, until tcpdump ends there or ctx does. The link may come late, go and come again; the agent may be replaced meanwhile.
func (f *follower) look(ctx context.Context, node string) error {
	for {
		err := f.once(ctx, node)
		var exit *ExitError
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // told to end
		case err == nil:
			return nil
		case errors.As(err, &exit) && exit.Code != errand.ExitGone && exit.Code < killed:
			return err
		case exit == nil && !f.begun.Load():
			return err
		case exit == nil:
			say(f.said(node), "%v: trying again", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookAgain):
		}
	}
}

// killed is the least exit code of a program that a signal has ended: its container was.
const killed = 128

// once runs the errand on a node.
func (f *follower) once(ctx context.Context, node string) error {
	in, err := f.agentOn(ctx, node)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	defer func() { _ = w.Close() }() // whoever still reads from it is told that this is all
	with, leave := context.WithCancel(ctx)
	defer leave()
	go keepCompany(with, w)
	// It ends by the end of its input, and says what it has counted; should it not, it is left alone, and ends by that nobody speaks to it.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-running.Done():
		case <-time.After(farewell):
			cancel()
		}
	})()
	args := slices.Concat([]string{"godwit-agent", "tcpdump", "--port", string(f.view.port)}, in.as("--ovs-db"), []string{"--"}, f.args)
	return f.containers.run(running, program{in: in.container, args: args, stdin: r, stdout: f.shown(node), stderr: f.said(node)})
}

// keepCompany tells an errand that somebody is there, until ctx ends, and then that nobody is.
func keepCompany(ctx context.Context, w *io.PipeWriter) {
	defer func() { _ = w.Close() }()
	beat := time.NewTicker(errand.Beat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			if _, err := io.Copy(w, strings.NewReader("\n")); err != nil {
				return // it has ended
			}
		}
	}
}
