package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// listing is what `kubectl ovn migrations` is asked for.
type listing struct {
	cluster
	vm            string
	everywhere    bool
	follow        bool
	format        format
	out, messages io.Writer
}

func (s *session) migrationsCommand() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use: "migrations [VM]", Args: cobra.MaximumNArgs(1), ValidArgsFunction: s.complete(vms),
		Short: "Live migrations on record, those that run among them",
		Long: `migrations lists the live migrations of a namespace, or of one VM, the oldest first. The last ten of each VM are kept, unless the controller was told otherwise.
INTERRUPTION is for how long the network heard nothing of the VM at most, and by how much the clocks of the two nodes may be wrong; "?" where a clock is not synchronized.`,
		Example: "  kubectl ovn migrations\n  kubectl ovn migrations web1 -w",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if l.cluster, err = s.connect(); err != nil {
				return err
			}
			if len(args) > 0 {
				l.vm = args[0]
			}
			if l.everywhere {
				l.namespace = ""
			}
			l.out, l.messages = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return l.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&l.everywhere, "all-namespaces", "A", false, "of all namespaces")
	f.BoolVarP(&l.follow, "watch", "w", false, "go on, and print what changes")
	f.VarP(&l.format, "output", "o", formats)
	return cmd
}

// options are what the API server is asked for.
func (l *listing) options() []client.ListOption {
	opts := []client.ListOption{client.InNamespace(l.namespace)}
	if l.vm != "" {
		opts = append(opts, client.MatchingFields{"spec.vmi.name": l.vm})
	}
	return opts
}

func (l *listing) run(ctx context.Context) error {
	list, err := l.list(ctx)
	if err != nil {
		return err
	}
	if l.format == asJSON || l.format == asYAML {
		if l.follow {
			return fmt.Errorf("-o %s and --watch do not go together: leave one out", l.format)
		}
		return l.format.object(l.out, list, l.api.Scheme())
	}
	t := &table{out: l.out}
	if l.follow {
		t.reserve(l.header(), map[string]string{"VM": "a-vm-of-ours", "FROM": "worker-1", "TO": "worker-1", "PHASE": "RolledBack", "RESULT": "Succeeded", "INTERRUPTION": "1234.5 ms ±0.1"})
	}
	rows := [][]string{l.header()}
	for i := range list.Items {
		rows = append(rows, l.row(&list.Items[i]))
	}
	switch {
	case len(rows) > 1:
		t.rows(rows...)
	case l.follow:
		t.rows(l.header())
	default:
		say(l.messages, "No migrations on record %s.", l.where())
	}
	if !l.follow {
		return nil
	}
	return l.watch(ctx, t, list)
}

func (l *listing) where() string {
	where := "in namespace " + l.namespace
	if l.namespace == "" {
		where = "in the cluster"
	}
	if l.vm != "" {
		where = "of VM " + l.vm + " " + where
	}
	return where
}

// list is what is on record, the oldest first.
func (l *listing) list(ctx context.Context) (*v1alpha1.PortMigrationList, error) {
	var list v1alpha1.PortMigrationList
	if err := l.api.List(ctx, &list, l.options()...); err != nil {
		return nil, fmt.Errorf("list the migrations %s: %w", l.where(), explained(err))
	}
	slices.SortFunc(list.Items, older)
	return &list, nil
}

// older orders migrations by when they began.
func older(a, b v1alpha1.PortMigration) int {
	return cmp.Or(began(&a).Compare(began(&b)), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// explained says what to do where an API server does not know Godwit's kinds.
func explained(err error) error {
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return fmt.Errorf("%w: is Godwit installed in this cluster (kubectl get crd portmigrations.godwit.dev)?", err)
	}
	return err
}

// watch prints what changes, until ctx ends. A watch that the API server ends is begun anew.
func (l *listing) watch(ctx context.Context, t *table, list *v1alpha1.PortMigrationList) error {
	for {
		from := &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}}
		w, err := l.api.Watch(ctx, &v1alpha1.PortMigrationList{}, append(l.options(), from)...)
		if err != nil {
			return unlessDone(ctx, fmt.Errorf("watch the migrations %s: %w", l.where(), err))
		}
		known := versions(list)
		l.print(ctx, t, w, known)
		if list, err = l.list(ctx); err != nil {
			return unlessDone(ctx, err)
		}
		for i := range list.Items {
			if pm := &list.Items[i]; known[client.ObjectKeyFromObject(pm)] != pm.ResourceVersion {
				t.rows(l.row(pm))
			}
		}
	}
}

// unlessDone is the error, but where the user has seen enough and has ended the command, which is no error.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // told to end
	}
	return err
}

// versions are those of a list's objects.
func versions(list *v1alpha1.PortMigrationList) map[client.ObjectKey]string {
	known := map[client.ObjectKey]string{}
	for i := range list.Items {
		known[client.ObjectKeyFromObject(&list.Items[i])] = list.Items[i].ResourceVersion
	}
	return known
}

// print prints what a watch says, until it ends, and notes what it has printed.
func (l *listing) print(ctx context.Context, t *table, w watch.Interface, known map[client.ObjectKey]string) {
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.ResultChan():
			pm, is := e.Object.(*v1alpha1.PortMigration)
			if !ok || !is {
				return // it has ended, or its version is too old
			}
			known[client.ObjectKeyFromObject(pm)] = pm.ResourceVersion
			if e.Type != watch.Deleted {
				t.rows(l.row(pm))
			}
		}
	}
}

func (l *listing) header() []string {
	row := []string{"VM", "FROM", "TO", "PHASE", "RESULT", "INTERRUPTION", "TOOK", "AGE"}
	if l.namespace == "" {
		row = append([]string{"NAMESPACE"}, row...)
	}
	if l.format == wide {
		row = append(row, "REASON", "MIGRATION")
	}
	return row
}

func (l *listing) row(pm *v1alpha1.PortMigration) []string {
	st := &pm.Status
	took := noColumn
	if end, over := st.Stage(v1alpha1.StageCompleted); over {
		took = duration.HumanDuration(end.Sub(began(pm)))
	}
	row := []string{
		pm.Spec.VMI.Name, pm.Spec.Source.Node, pm.Spec.Target.Node, filled(st.Phase), filled(string(st.Result)), interruption(st.Interruption), took,
		duration.HumanDuration(time.Since(pm.CreationTimestamp.Time)),
	}
	if l.namespace == "" {
		row = append([]string{pm.Namespace}, row...)
	}
	if l.format == wide {
		row = append(row, filled(st.Reason), pm.Spec.Migration.Name)
	}
	return row
}

// began is when the controller first saw the target.
func began(pm *v1alpha1.PortMigration) time.Time {
	if at, ok := pm.Status.Stage(v1alpha1.StageScheduled); ok {
		return at
	}
	return pm.CreationTimestamp.Time
}

// interruption is the figure with what it may be wrong by.
func interruption(i *v1alpha1.Interruption) string {
	switch {
	case i == nil:
		return noColumn
	case i.UncertaintyMilliseconds == "":
		return i.Milliseconds + " ms ?"
	case oneClock(i):
		return i.Milliseconds + " ms"
	}
	return i.Milliseconds + " ms ±" + i.UncertaintyMilliseconds
}

// oneClock: both ends are on one machine, whose clock cannot differ from itself.
func oneClock(i *v1alpha1.Interruption) bool {
	uncertainty, err := strconv.ParseFloat(i.UncertaintyMilliseconds, 64)
	return err == nil && uncertainty == 0
}
