package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
