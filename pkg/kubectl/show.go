package kubectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

func (s *session) migrationCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "migration", Short: "One live migration"}
	var format format
	show := &cobra.Command{
		Use: "show VM|NAME", Args: cobra.ExactArgs(1), ValidArgsFunction: s.complete(vms),
		Short: "What happened in a migration, by whom, and when",
		Long: `show tells one migration stage by stage: the PortMigration of that name, or the last one of a VM. Each bar is the time from the stage before to this one.
The controller's times are by the clock of its node, an agent's by that of its own: stages of different nodes may be out of order by as much as the clocks differ.`,
		Example: "  kubectl ovn migration show web1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if format == wide {
				return errors.New("-o wide is not of this command, which tells all that there is: leave it out, or write -o json or -o yaml")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			pm, err := c.migration(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if format == asJSON || format == asYAML {
				return format.object(cmd.OutOrStdout(), pm, c.api.Scheme())
			}
			story{pm}.write(cmd.OutOrStdout())
			return nil
		},
	}
	show.Flags().VarP(&format, "output", "o", "json or yaml")
	cmd.AddCommand(show, s.checkCommand())
	return cmd
}

// migration is the one of a name, or the last of the VM of that name.
func (c cluster) migration(ctx context.Context, name string) (*v1alpha1.PortMigration, error) {
	var pm v1alpha1.PortMigration
	err := c.api.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: name}, &pm)
	if err == nil {
		return &pm, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read PortMigration %s/%s: %w", c.namespace, name, explained(err))
	}
	l := listing{cluster: c, vm: name}
	list, err := l.list(ctx)
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("there is neither a PortMigration %s nor one of a VM of that name in namespace %s: kubectl ovn migrations lists them", name, c.namespace)
	}
	return &list.Items[len(list.Items)-1], nil
}

// moment is something that happened.
type moment struct {
	at        time.Time
	who, what string
}

// story tells a migration.
type story struct{ *v1alpha1.PortMigration }

// moments are all that is known, in the order in which they happened.
func (s story) moments() []moment {
	const controller, ovn = "controller", "OVN"
	source, target := s.Spec.Source.Node, s.Spec.Target.Node
	said := map[v1alpha1.StageName]moment{
		v1alpha1.StageScheduled:  {who: controller, what: "the target pod has a node"},
		v1alpha1.StagePrepared:   {who: controller, what: "the ports ask for both nodes"},
		v1alpha1.StageActivated:  {who: ovn, what: "the target is activated"},
		v1alpha1.StageReady:      {who: "KubeVirt", what: "the VM runs on the target"},
		v1alpha1.StageCommitted:  {who: controller, what: "the ports ask for " + target + " alone"},
		v1alpha1.StageRolledBack: {who: controller, what: "the ports ask for " + source + " alone"},
		v1alpha1.StageCompleted:  {who: "KubeVirt", what: "the migration is over"},
	}
	var all []moment
	for _, stage := range s.Status.Stages {
		m, known := said[stage.Name]
		if !known {
			m = moment{who: controller, what: string(stage.Name)} // of a newer controller
		}
		m.at = stage.Time.Time
		all = append(all, m)
	}
	add := func(at *metav1.MicroTime, who, what string) {
		if at != nil {
			all = append(all, moment{at: at.Time, who: who, what: what})
		}
	}
	if o := s.Status.Source; o != nil {
		add(o.LastFrame, source, "the VM's last frame here")
		add(o.Stopped, source, "the VM is stopped here")
	}
	if o := s.Status.Target; o != nil {
		announced := "the VM announces itself"
		if o.AnnouncedByAgent {
			announced = "the agent announces the VM"
		}
		add(o.Attached, target, "OVN has installed the ports")
		add(o.Opened, target, "the agent opens the ports")
		add(o.Announced, target, announced)
		add(o.Unblocked, target, "OVN passes the VM's frames")
		add(o.FirstFrame, target, "the VM's first frame here")
	}
	slices.SortStableFunc(all, func(a, b moment) int { return a.at.Compare(b.at) })
	return all
}

// barWidth is that of all bars together: with it a line is as long as a terminal's usual 80 columns.
const barWidth = 16

// write tells it.
func (s story) write(w io.Writer) {
	st := &s.Status
	say(w, "VM %s/%s: %s → %s, %s", s.Namespace, s.Spec.VMI.Name, s.Spec.Source.Node, s.Spec.Target.Node, s.outcome())
	if st.Message != "" {
		say(w, "%s (%s): %s", filled(st.Phase), filled(st.Reason), st.Message)
	}
	say(w, "")
	moments := s.moments()
	rows := [][]string{{"MS", "TOOK", "WHO", "WHAT", ""}}
	for i, m := range moments {
		first, last := moments[0].at, moments[len(moments)-1].at
		before := moments[max(i-1, 0)].at
		rows = append(rows, []string{millis(m.at.Sub(first)), millis(m.at.Sub(before)), m.who, m.what, bar(before.Sub(first), m.at.Sub(first), last.Sub(first))})
	}
	right(rows, 2)
	(&table{out: w}).rows(rows...)
	say(w, "")
	(&table{out: w}).rows(s.facts()...)
}

// outcome is how it ended, and how long it took.
func (s story) outcome() string {
	switch st := &s.Status; st.Result {
	case v1alpha1.MigrationSucceeded, v1alpha1.MigrationFailed:
		word := strings.ToLower(string(st.Result))
		if end, ok := st.Stage(v1alpha1.StageCompleted); ok {
			return fmt.Sprintf("%s after %s s", word, strconv.FormatFloat(end.Sub(began(s.PortMigration)).Seconds(), 'f', 1, 64))
		}
		return word
	}
	return "running since " + began(s.PortMigration).UTC().Format(time.TimeOnly) + " UTC"
}

// facts are what there is to know besides the stages.
func (s story) facts() [][]string {
	rows := [][]string{{"interruption", s.interrupted()}}
	rows = append(rows, s.switchover()...)
	rows = append(rows, s.connections()...)
	if o := s.Status.Target; o != nil && o.Announced != nil {
		rows = append(rows, []string{"dropped by OVN", fmt.Sprintf("%d frames that came before the announcement", o.FramesBeforeAnnouncement)})
	}
	for _, p := range s.Spec.Ports {
		rows = append(rows, []string{"network " + p.Network, fmt.Sprintf("port %s, MAC %s", p.Name, filled(p.MAC))})
	}
	return append(rows,
		[]string{"source", fmt.Sprintf("pod %s on %s", s.Spec.Source.Pod.Name, s.Spec.Source.Node)},
		[]string{"target", fmt.Sprintf("pod %s on %s", s.Spec.Target.Pod.Name, s.Spec.Target.Node)},
		[]string{"migration", s.Spec.Migration.Name},
		[]string{"PortMigration", s.Name},
	)
}

// switchover is what opened the ports, and what became of the frames that were sent to the VM while it was stopped.
func (s story) switchover() (rows [][]string) {
	if o := s.Status.Target; o != nil && o.ActivatedBy != "" {
		rows = append(rows, []string{"activated by", map[v1alpha1.ActivatedBy]string{
			v1alpha1.ActivatedBySignal: "the signal that the VM was stopped", v1alpha1.ActivatedByRARP: "the RARP that announced the VM",
		}[o.ActivatedBy]})
	}
	if o := s.Status.Source; o != nil && o.FramesLost != nil {
		rows = append(rows, []string{"lost", fmt.Sprintf("%d frames that came between the stop and the signal", *o.FramesLost)})
	}
	if o := s.Status.Target; o != nil && o.FramesQueued != nil {
		rows = append(rows, []string{"waited", fmt.Sprintf("%d frames for the VM, on the target", *o.FramesQueued)})
	}
	return rows
}

// connections is what became of the hand-over of the VM's connections; none where there was none.
func (s story) connections() [][]string {
	from, to := s.Status.Source, s.Status.Target
	if from == nil || from.Connections == nil {
		return nil
	}
	moved, word := v1alpha1.Connections{}, "handing over"
	if to != nil && to.Connections != nil {
		moved = *to.Connections
	}
	switch c := from.Connections; {
	case c.Ended != nil && c.Began == nil:
		word = "not handed over"
	case c.Ended != nil:
		word = "handed over"
	}
	return [][]string{{"connections", fmt.Sprintf("%s: %d moved, %d refused, %d left", word, moved.Moved, moved.Refused, from.Connections.Left)}}
}

// interrupted says for how long the VM was not heard, and what the figure is worth.
func (s story) interrupted() string {
	i := s.Status.Interruption
	switch {
	case i == nil && s.Status.Over():
		return "not known: not both agents heard the VM"
	case i == nil:
		return "not known yet"
	case i.UncertaintyMilliseconds == "":
		return fmt.Sprintf("%s ms by two clocks of which one is not synchronized: it tells little", i.Milliseconds)
	case oneClock(i):
		return fmt.Sprintf("%s ms at most, by one clock", i.Milliseconds)
	}
	return fmt.Sprintf("%s ms at most, give or take %s ms between the nodes' clocks", i.Milliseconds, i.UncertaintyMilliseconds)
}

// bar is the part of the whole time from one moment to another.
func bar(from, to, whole time.Duration) string {
	if whole <= 0 {
		return ""
	}
	at := func(d time.Duration) int { return int(int64(d) * barWidth / int64(whole)) }
	begin, end := min(at(from), barWidth-1), at(to)
	return strings.Repeat(" ", begin) + strings.Repeat("━", max(end-begin, 1))
}

// millis is a time in milliseconds to a tenth.
func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Round(100*time.Microsecond))/float64(time.Millisecond), 'f', 1, 64)
}

// right aligns the first columns of a table to the right.
func right(rows [][]string, columns int) {
	for c := range columns {
		width := 0
		for _, row := range rows {
			width = max(width, len(row[c]))
		}
		for _, row := range rows {
			row[c] = strings.Repeat(" ", width-len(row[c])) + row[c]
		}
	}
}
