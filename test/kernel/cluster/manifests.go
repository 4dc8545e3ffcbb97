package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/kubevirt"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// applyManifests creates Godwit's objects but for its pods, which are processes here, and KubeVirt's definitions.
func (c *Cluster) applyManifests(ctx context.Context) error {
	top, err := source.Dir()
	if err != nil {
		return err
	}
	texts := kubevirt.Manifests()[:1]
	for _, pattern := range []string{"yamls/crds/*.yaml", "yamls/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			return fmt.Errorf("list Godwit's manifests: %w", err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return fmt.Errorf("read Godwit's manifests: %w", err)
			}
			texts = append(texts, string(b))
		}
	}
	var objects []*unstructured.Unstructured
	for _, text := range texts {
		more, err := lab.ReadObjects(bytes.NewReader([]byte(text)))
		if err != nil {
			return err
		}
		objects = append(objects, more...)
	}
	// What the others are in, or of, comes first.
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	for _, o := range objects {
		if o.GetKind() == "Deployment" || o.GetKind() == "DaemonSet" {
			continue
		}
		if err := c.API.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

func rank(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "Namespace":
		return 0
	case "CustomResourceDefinition":
		return 1
	}
	return 2
}
