package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/supervise"
)

// Journal is the file in the hub's directory in which the stand-in for KubeVirt notes what QEMU does.
const Journal = "qemu.jsonl"

// NodeVar is a node's /var, as the hub and the lab's user see it; machines is the directory of the machines' directories.
func NodeVar(machines, node string) string { return filepath.Join(machines, node, "var") }

// standIn is the process that stands in for KubeVirt's controllers. It is on the hub, where the API server is and all nodes' files can be reached.
func standIn(spec *Spec) supervise.Service {
	return supervise.Service{
		Name: "kubevirt", Needs: []string{"kube-apiserver"},
		Argv: []string{
			spec.Program, "kubevirt", "--kubeconfig", filepath.Join(spec.Secrets(), KubeVirtConfig), "--machines", filepath.Dir(spec.Dir),
			"--journal", filepath.Join(spec.Dir, Journal),
		},
	}
}

// KubeVirt describes the stand-in's process.
type KubeVirt struct {
	// Kubeconfig, Machines and Journal are files: credentials, the directory of the machines' directories, and what is written.
	Kubeconfig, Machines, Journal string
}

// Run is the stand-in's process. It returns when ctx ends.
func (k KubeVirt) Run(ctx context.Context, log *slog.Logger) (err error) {
	api, err := clientcmd.BuildConfigFromFlags("", k.Kubeconfig)
	if err != nil {
		return fmt.Errorf("read %s: %w", k.Kubeconfig, err)
	}
	api.QPS, api.Burst = -1, 0
	journal, err := os.OpenFile(k.Journal, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the journal of QEMU's events: %w", err)
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	return kubevirt.Run(ctx, kubevirt.Config{
		API: api, Journal: journal, Log: log,
		Launchers: kubevirt.Guests{NodeVar: func(node string) string { return NodeVar(k.Machines, node) }},
	})
}
