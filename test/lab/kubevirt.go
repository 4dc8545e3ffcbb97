package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
)

// applyKubeVirt applies the definitions of KubeVirt's kinds and what their stand-in needs; its process waits for them.
func (l *Lab) applyKubeVirt(ctx context.Context) error {
	for _, m := range kubevirt.Manifests() {
		objects, err := ReadObjects(strings.NewReader(m))
		if err != nil {
			return err
		}
		if err := l.Apply(ctx, objects...); err != nil {
			return err
		}
	}
	return nil
}

// awaitKubeVirt returns when VMs and migrations can be created: the API server serves a kind that has just been defined some seconds before its
// admission policies know it.
func (l *Lab) awaitKubeVirt(ctx context.Context) error {
	vms, err := l.VMs()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: "godwit-lab-"}
	for {
		err := errors.Join(
			vms.api.Create(ctx, &kubevirtv1.VirtualMachineInstance{ObjectMeta: meta}, client.DryRunAll),
			vms.api.Create(ctx, &kubevirtv1.VirtualMachineInstanceMigration{
				ObjectMeta: meta, Spec: kubevirtv1.VirtualMachineInstanceMigrationSpec{VMIName: "none"},
			}, client.DryRunAll),
		)
		if err == nil {
			return nil
		}
		if pauseErr := pause(ctx, poll); pauseErr != nil {
			return fmt.Errorf("VMs cannot be created: %w", errors.Join(err, pauseErr))
		}
	}
}

// guests reach the launchers in the lab's pods, from this machine.
func (l *Lab) guests() kubevirt.Guests {
	return kubevirt.Guests{NodeVar: func(node string) string { return boot.NodeVar(l.path(machinesDir), node) }}
}

// journal is where the stand-in notes what QEMU does.
func (l *Lab) journal() string { return filepath.Join(l.machineDir(hubName), boot.Journal) }

// Record writes what changes of KubeVirt's objects and launchers to a file, until ctx ends.
func (l *Lab) Record(ctx context.Context, file string) (err error) {
	config, err := l.RESTConfig()
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, err := kubevirt.NewRecording(config, f)
	if err != nil {
		return err
	}
	return r.Run(ctx)
}
