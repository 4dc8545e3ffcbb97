// Package kubectl is `kubectl ovn`: it reads the API, and asks OVN in Godwit's pods, with the rights of whoever runs it. It changes nothing by itself.
package kubectl

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
)

// Command is the whole of the plugin.
func Command(version string) *cobra.Command {
	var s session
	root := &cobra.Command{
		Use: "kubectl-ovn", Version: version, SilenceUsage: true,
		Short: "What the network knows of VMs, and did to them",
		Long: `kubectl ovn reads what Godwit's controller and agents have written down: the ports of VMs, and how each live migration went.
It reads the API with your own rights, and asks OVN and Open vSwitch where they run as Godwit's pods. It changes nothing by itself.`,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl ovn"},
	}
	root.AddCommand(s.diagnoseCommand())
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	flags := root.PersistentFlags()
	flags.StringVar(&rules.ExplicitPath, clientcmd.RecommendedConfigPathFlag, "", "kubeconfig file; as kubectl's if empty")
	clientcmd.BindOverrideFlags(&s.overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
	flags.StringVar(&s.system, "system-namespace", systemNamespace, "where Godwit runs")
	s.rules = rules
	root.AddCommand(s.migrationsCommand(), s.migrationCommand(), s.portCommand(), s.drainCommand(), s.dbCommand(), s.traceCommand(), s.tcpdumpCommand())
	root.AddCommand(s.passCommands()...)
	return root
}

// session is how the API server is reached.
type session struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
	system    string
}

// cluster is an API server, the way into its containers, the namespace that is meant and that of Godwit.
type cluster struct {
	api               client.WithWatch
	containers        containers
	namespace, system string
}

// connect reads the kubeconfig. Nothing is asked of the API server yet.
func (s *session) connect() (cluster, error) {
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(s.rules, &s.overrides)
	namespace, _, err := config.Namespace()
	if err != nil {
		return cluster{}, fmt.Errorf("read the kubeconfig: %w", err)
	}
	rest, err := config.ClientConfig()
	if err != nil {
		return cluster{}, fmt.Errorf("read the kubeconfig: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := kinds(scheme); err != nil {
		return cluster{}, err
	}
	api, err := client.NewWithWatch(rest, client.Options{Scheme: scheme})
	if err != nil {
		return cluster{}, fmt.Errorf("API server %s: %w", rest.Host, err)
	}
	return cluster{api: api, containers: execs{rest}, namespace: namespace, system: s.system}, nil
}

// kinds are those that the plugin reads.
func kinds(scheme *runtime.Scheme) error {
	return errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), kubevirtv1.AddToScheme(scheme))
}

// say writes a line; what cannot be written to, a pipe that is closed, ends the program anyway.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
