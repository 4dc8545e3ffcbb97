package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	kubevirtv1 "kubevirt.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// vmWait bounds what --wait waits for.
const vmWait = 3 * time.Minute

// vmOptions are common to the commands about VMs.
type vmOptions struct {
	*options
	namespace string
	wait      bool
}

func (o *options) vmCommand() *cobra.Command {
	v := &vmOptions{options: o}
	vm := &cobra.Command{
		Use: "vm", Short: "Virtual machines: create, migrate, look into",
		Long: "Virtual machines of the lab: real QEMU guests in launcher pods, under a stand-in for KubeVirt's controllers.\n" +
			"kubectl works as well: apply an ordinary VirtualMachine, create a VirtualMachineInstanceMigration.",
	}
	vm.PersistentFlags().StringVarP(&v.namespace, "namespace", "n", "default", "the VM's namespace")
	vm.AddCommand(v.createCommand(), v.listCommand(), v.consoleCommand(), v.migrateCommand(), v.recordCommand())
	for _, c := range []struct {
		use, short string
		do, wait   func(context.Context, *lab.VM) error
	}{
		{"start", "Start a VM that was stopped", func(ctx context.Context, m *lab.VM) error { return m.Start(ctx) }, awaitRunning},
		{"stop", "Shut a VM down, and keep it so", func(ctx context.Context, m *lab.VM) error { return m.Stop(ctx) }, func(ctx context.Context, m *lab.VM) error { return m.AwaitStopped(ctx) }},
		{"delete", "Delete a VM, when it has shut down", func(ctx context.Context, m *lab.VM) error { return m.Delete(ctx) }, nil},
		{"cancel", "Cancel the VM's migration", cancelMigration, nil},
		{"evacuate-cancel", "Let a VM stay that a drain wants to leave its node", func(ctx context.Context, m *lab.VM) error { return m.CancelEvacuation(ctx) }, nil},
	} {
		vm.AddCommand(v.simpleCommand(c.use, c.short, c.do, c.wait))
	}
	return vm
}

func (v *vmOptions) vms() (*lab.VMs, error) {
	l, err := v.open()
	if err != nil {
		return nil, err
	}
	return l.VMs()
}

// simpleCommand does something with one VM, and may wait for what comes of it.
func (v *vmOptions) simpleCommand(use, short string, do, wait func(context.Context, *lab.VM) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := v.vms()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), vmWait)
			defer cancel()
			m := vms.Get(v.namespace, args[0])
			if err := do(ctx, m); err != nil {
				return err
			}
			if v.wait && wait != nil {
				return wait(ctx, m)
			}
			return nil
		},
	}
	if wait != nil {
		cmd.Flags().BoolVar(&v.wait, "wait", false, "wait until it has happened")
	}
	return cmd
}

func awaitRunning(ctx context.Context, m *lab.VM) error {
	_, err := m.AwaitRunning(ctx)
	return err
}

func cancelMigration(ctx context.Context, m *lab.VM) error {
	list, err := m.Migrations(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		if g := &list[i]; g.Status.Phase != kubevirtv1.MigrationSucceeded && g.Status.Phase != kubevirtv1.MigrationFailed {
			return (&lab.Migration{VM: m, Name: g.Name, UID: g.UID}).Cancel(ctx)
		}
	}
	return fmt.Errorf("VM %s is not being migrated", m)
}

func (v *vmOptions) createCommand() *cobra.Command {
	c := lab.VMOptions{MemoryMiB: guest.DefaultMemoryMiB}
	binding, strategy, eviction := string(guest.Bridge), string(kubevirtv1.RunStrategyAlways), ""
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a VM", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := v.vms()
			if err != nil {
				return err
			}
			c.Namespace, c.Name, c.Strategy = v.namespace, args[0], kubevirtv1.VirtualMachineRunStrategy(strategy)
			c.Binding, c.Eviction = guest.Binding(binding), kubevirtv1.EvictionStrategy(eviction)
			if c.Binding != guest.Bridge && c.Binding != guest.Masquerade {
				return fmt.Errorf("binding %q: want %s or %s", binding, guest.Bridge, guest.Masquerade)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), vmWait)
			defer cancel()
			m, err := vms.Create(ctx, c)
			if err != nil || !v.wait {
				return err
			}
			if err := m.AwaitAnswer(ctx); err != nil {
				return err
			}
			addresses, err := m.Addresses(ctx)
			fmt.Println(m, addresses)
			return err
		},
	}
	f := cmd.Flags()
	f.IntVar(&c.MemoryMiB, "memory", c.MemoryMiB, "the guest's memory in MiB, 256 at most")
	f.StringVar(&binding, "binding", binding, "bridge or masquerade")
	f.StringVar(&c.MAC, "mac", "", "the guest's MAC address")
	f.StringVar(&c.Node, "node", "", "where it is to start")
	f.StringToStringVar(&c.Labels, "labels", nil, "labels of the VM's pods: a=b,c=d")
	f.StringToStringVar(&c.Annotations, "annotations", nil, "annotations of the VirtualMachineInstance: a=b,c=d")
	f.BoolVar(&c.Bare, "bare", false, "a VirtualMachineInstance without a VirtualMachine")
	f.StringVar(&strategy, "run-strategy", strategy, "Always, RerunOnFailure, Manual, Once or Halted")
	f.StringVar(&eviction, "eviction-strategy", "", "LiveMigrate, LiveMigrateIfPossible, External or None: what becomes of it when its node is drained")
	f.BoolVar(&v.wait, "wait", false, "wait until its echo answers")
	return cmd
}

func (v *vmOptions) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the VMs of all namespaces", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			vms, err := v.vms()
			if err != nil {
				return err
			}
			running, stopped, err := vms.List(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			if _, err := fmt.Fprintln(w, "NAMESPACE\tNAME\tPHASE\tNODE\tADDRESSES\tMIGRATION"); err != nil {
				return err
			}
			for i := range running {
				m := &running[i]
				var ips []string
				for _, n := range m.Status.Interfaces {
					ips = append(ips, n.IPs...)
				}
				row := []string{m.Namespace, m.Name, string(m.Status.Phase), m.Status.NodeName, strings.Join(ips, ","), lastMigration(m)}
				if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
					return err
				}
			}
			for i := range stopped {
				m := &stopped[i]
				if _, err := fmt.Fprintf(w, "%s\t%s\t%s\t\t\t\n", m.Namespace, m.Name, m.Status.PrintableStatus); err != nil {
					return err
				}
			}
			return w.Flush()
		},
	}
}

// lastMigration is in a word what the VMI says of it.
func lastMigration(vmi *kubevirtv1.VirtualMachineInstance) string {
	s := vmi.Status.MigrationState
	switch {
	case s == nil:
		return ""
	case s.Failed:
		return "failed to " + s.TargetNode + ": " + s.FailureReason
	case s.Completed:
		return "from " + s.SourceNode
	}
	return "to " + s.TargetNode
}

func (v *vmOptions) migrateCommand() *cobra.Command {
	var o lab.MigrateOptions
	var fault, mode string
	var hold []string
	cmd := &cobra.Command{
		Use: "migrate NAME", Short: "Migrate a VM to another node", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := v.vms()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), vmWait)
			defer cancel()
			o.Fault, o.Mode = kubevirt.Fault(fault), kubevirtv1.MigrationMode(mode)
			for _, h := range hold {
				o.Hold = append(o.Hold, kubevirt.Stage(h))
			}
			m := vms.Get(v.namespace, args[0])
			if _, err := m.VMI(ctx); err != nil {
				return err // KubeVirt's webhook would say so
			}
			g, err := m.Migrate(ctx, o)
			if err != nil {
				return err
			}
			fmt.Println(g.Name)
			if !v.wait {
				return nil
			}
			if _, err := g.AwaitSuccess(ctx); err != nil {
				return err
			}
			stop, err := g.QEMU(ctx)
			if err != nil {
				return err
			}
			fmt.Printf("QEMU had stopped the VM for %.1f ms\n", float64(stop.Duration().Microseconds())/1000)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.To, "to", "", "the node; any other by default")
	f.BoolVar(&v.wait, "wait", false, "wait until it has succeeded, and tell QEMU's own stop")
	f.StringVar(&fault, "fail", "", "let it go wrong: see docs/lab.md")
	f.StringVar(&mode, "mode", "", "PreCopy or PostCopy")
	f.StringSliceVar(&hold, "hold", nil, "stages that are not entered until the annotation "+kubevirt.HoldAnnotation+" is removed")
	f.Int64Var(&o.Bandwidth, "bandwidth", 0, "bytes a second; 0 for no limit")
	return cmd
}

// consoleCommand copies bytes; the terminal stays as it is, so that Ctrl-C ends it.
func (v *vmOptions) consoleCommand() *cobra.Command {
	return &cobra.Command{
		Use: "console NAME", Short: "Attach to the guest's serial console, a root shell; Ctrl-C ends it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := v.vms()
			if err != nil {
				return err
			}
			console, err := vms.Get(v.namespace, args[0]).Console(cmd.Context())
			if err != nil {
				return err
			}
			return attach(cmd.Context(), console)
		},
	}
}

// recordCommand writes recordings like those that pkg/migration replays.
func (v *vmOptions) recordCommand() *cobra.Command {
	return &cobra.Command{
		Use: "record FILE", Short: "Record KubeVirt's objects as they change, until Ctrl-C: for go test ./pkg/migration -run Replay -traces=DIR", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := v.open()
			if err != nil {
				return err
			}
			return l.Record(cmd.Context(), args[0])
		},
	}
}
