package kubectl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// kubevirtAtOnce is how many VMs KubeVirt lets leave a node at once, unless it was told otherwise (parallelOutboundMigrationsPerNode).
const kubevirtAtOnce = 2

func (s *session) drainCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "drain", Short: "A node that is to be emptied"}
	plan := &cobra.Command{
		Use: "plan NODE", Args: cobra.ExactArgs(1), ValidArgsFunction: s.complete(nodes),
		Short: "What would become of the VMs of a node that is drained",
		Long: `plan lists the VMs of a node with what a drain does to each: moves (live), ends (it is evicted for good: nobody said otherwise), or blocks (it is to move, and cannot: the
drain waits for ever). It tells how long the moves took before, and how long the drain will take at that rate, two at once as KubeVirt does by default.
It exits with 1 if a VM blocks or ends.`,
		Example: "  kubectl ovn drain plan node1",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			p, err := c.plan(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout())
		},
	}
	cmd.AddCommand(plan)
	return cmd
}

// plan is what is on a node that is to be drained.
type plan struct {
	node string
	vmis []kubevirtv1.VirtualMachineInstance
	// moves are all migrations on record.
	moves []v1alpha1.PortMigration
}

func (c cluster) plan(ctx context.Context, node string) (plan, error) {
	var n corev1.Node
	if err := c.api.Get(ctx, client.ObjectKey{Name: node}, &n); apierrors.IsNotFound(err) {
		return plan{}, fmt.Errorf("there is no Node %s: kubectl get nodes", node)
	} else if err != nil {
		return plan{}, fmt.Errorf("read Node %s: %w", node, err)
	}
	var vmis kubevirtv1.VirtualMachineInstanceList
	if err := c.api.List(ctx, &vmis); err != nil {
		return plan{}, fmt.Errorf("list the VMIs of all namespaces: %w", err)
	}
	moves, err := (&listing{cluster: cluster{api: c.api}}).list(ctx)
	if err != nil {
		return plan{}, err
	}
	here := slices.DeleteFunc(vmis.Items, func(v kubevirtv1.VirtualMachineInstance) bool { return v.Status.NodeName != node || v.IsFinal() })
	return plan{node, here, moves.Items}, nil
}

// fate is what a drain does to a VM.
type fate string

const (
	moves  fate = "moves"
	ends   fate = "ends"
	blocks fate = "blocks"
)

// fateOf follows KubeVirt's eviction webhook, for a VM that says itself what it wants: LiveMigrate moves or blocks, LiveMigrateIfPossible moves or ends.
func fateOf(vmi *kubevirtv1.VirtualMachineInstance) (fate, string) {
	strategy := kubevirtv1.EvictionStrategyNone
	if vmi.Spec.EvictionStrategy != nil {
		strategy = *vmi.Spec.EvictionStrategy
	}
	switch {
	case strategy == kubevirtv1.EvictionStrategyNone && vmi.Spec.EvictionStrategy == nil:
		return ends, "it has no evictionStrategy; KubeVirt's own default may say otherwise"
	case strategy == kubevirtv1.EvictionStrategyNone:
		return ends, "its evictionStrategy is None"
	case strategy == kubevirtv1.EvictionStrategyExternal:
		return blocks, "its evictionStrategy is External: whoever that is must move it"
	case vmi.IsMigratable():
		return moves, ""
	case strategy == kubevirtv1.EvictionStrategyLiveMigrateIfPossible:
		return ends, "it cannot be migrated: kubectl ovn migration check " + vmi.Name
	}
	return blocks, "it cannot be migrated: kubectl ovn migration check " + vmi.Name
}

// write prints the plan; the error says what is in the drain's way.
func (p plan) write(w io.Writer) error {
	if len(p.vmis) == 0 {
		say(w, "no VM runs on %s", p.node)
		return nil
	}
	t := &table{out: w}
	rows := [][]string{{"NAMESPACE", "VM", "FATE", "LAST TOOK", "INTERRUPTION", "WHY"}}
	count := map[fate]int{}
	for i := range p.vmis {
		vmi := &p.vmis[i]
		f, why := fateOf(vmi)
		count[f]++
		took, interrupted := noColumn, noColumn
		if last := p.last(vmi); last != nil {
			interrupted = interruption(last.Status.Interruption)
			if d, ok := lasted(last); ok {
				took = d.Round(100 * time.Millisecond).String()
			}
		}
		rows = append(rows, []string{vmi.Namespace, vmi.Name, string(f), took, interrupted, filled(why)})
	}
	t.rows(rows...)
	say(w, "")
	say(w, "%d move, %d end, %d block; %s", count[moves], count[ends], count[blocks], p.estimate(count[moves]))
	switch {
	case count[blocks] > 0:
		return fmt.Errorf("the drain of %s would wait for ever for %d VMs", p.node, count[blocks])
	case count[ends] > 0:
		return fmt.Errorf("the drain of %s would end %d VMs", p.node, count[ends])
	}
	return nil
}

// last is a VM's last migration that is over, nil if there is none.
func (p plan) last(vmi *kubevirtv1.VirtualMachineInstance) *v1alpha1.PortMigration {
	for i := range slices.Backward(p.moves) {
		if pm := &p.moves[i]; pm.Namespace == vmi.Namespace && pm.Spec.VMI.Name == vmi.Name && pm.Status.Over() {
			return pm
		}
	}
	return nil
}

func lasted(pm *v1alpha1.PortMigration) (time.Duration, bool) {
	from, began := pm.Status.Stage(v1alpha1.StageScheduled)
	to, ended := pm.Status.Stage(v1alpha1.StageCompleted)
	return to.Sub(from), began && ended && pm.Status.Result == v1alpha1.MigrationSucceeded
}

// estimate is by the median of all migrations on record that succeeded: VMs of other nodes are of the same cluster.
func (p plan) estimate(n int) string {
	var all []time.Duration
	for i := range p.moves {
		if d, ok := lasted(&p.moves[i]); ok {
			all = append(all, d)
		}
	}
	if len(all) == 0 || n == 0 {
		return "no migration is on record to say how long that takes"
	}
	slices.Sort(all)
	median := all[len(all)/2]
	rounds := (n + kubevirtAtOnce - 1) / kubevirtAtOnce
	return fmt.Sprintf("about %s, by the %d migrations on record (median %s)", (median * time.Duration(rounds)).Round(time.Second), len(all), median.Round(100*time.Millisecond))
}
