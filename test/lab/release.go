package lab

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/godwit-cni/godwit/test/lab/image"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// Release is a version of Godwit, for labs that are Empty: their maker applies it.
type Release struct {
	// Source is the top directory of its sources.
	Source string
	// Image is what the lab calls its image, with a tag that no other release's has; GodwitImage is the checkout's, which Up builds.
	Image string
}

// AddRelease builds a release's image, with its programs in the directory programs, and brings it to all nodes that run.
func (l *Lab) AddRelease(ctx context.Context, r Release, programs string) error {
	commands, err := image.List(r.Source, "godwit", image.Commands)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(programs, 0o755); err != nil {
		return fmt.Errorf("make a directory for programs: %w", err)
	}
	build := source.Build{Dir: r.Source, Out: programs, LDFlags: "-s -w"}
	for _, c := range commands {
		build.Packages = append(build.Packages, "./cmd/"+c)
	}
	if err := build.Run(ctx, l.log); err != nil {
		return err
	}
	root, err := packages.Ensure(ctx, l.log)
	if err != nil {
		return err
	}
	img, err := image.Product(r.Source, "godwit", root, programs)
	if err != nil {
		return err
	}
	img.Ref = r.Image
	archive := strings.ReplaceAll(path.Base(r.Image), ":", "-") + ".tar"
	if _, err := img.Ensure(l.path(imagesDir, archive)); err != nil {
		return err
	}
	return l.updateImages(ctx)
}

// Manifests are what a user applies of a release, with the settings of this cluster and the lab's name of its image: CustomResourceDefinitions, and all others.
func (l *Lab) Manifests(ctx context.Context, r Release) (definitions, others []*unstructured.Unstructured, err error) {
	if definitions, err = l.readManifests(filepath.Join(r.Source, "yamls/crds")); err != nil {
		return nil, nil, err
	}
	if others, err = l.readManifests(filepath.Join(r.Source, "yamls")); err != nil {
		return nil, nil, err
	}
	for _, o := range others {
		if err := setImage(o, r.Image); err != nil {
			return nil, nil, err
		}
	}
	if err := l.overrideSettings(others); err != nil {
		return nil, nil, err
	}
	return definitions, others, l.adaptCentral(ctx, others)
}

// readManifests reads the objects of a directory's manifests; not those of OVN where it is there already, as docs/install.md has it.
func (l *Lab) readManifests(dir string) ([]*unstructured.Unstructured, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("read Godwit's manifests: %w", err)
	}
	if l.ovn() != OVNPods {
		files = slices.DeleteFunc(files, func(f string) bool { return filepath.Base(f) == ovnManifest })
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("read Godwit's manifests: %s has none; godwit-lab up --cni none makes a cluster without Godwit", dir)
	}
	var objects []*unstructured.Unstructured
	for _, f := range files {
		more, err := readManifest(f)
		if err != nil {
			return nil, err
		}
		objects = append(objects, more...)
	}
	return objects, nil
}

// setImage names Godwit's own image in an object that has pods.
func setImage(o *unstructured.Unstructured, ref string) error {
	at := []string{"spec", "template", "spec", "containers"}
	containers, found, err := unstructured.NestedSlice(o.Object, at...)
	if err != nil {
		return fmt.Errorf("read the containers of %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	if !found {
		return nil
	}
	for _, c := range containers {
		if m, ok := c.(map[string]any); ok && m["image"] == GodwitImage {
			m["image"] = ref
		}
	}
	if err := unstructured.SetNestedSlice(o.Object, containers, at...); err != nil {
		return fmt.Errorf("name the image of %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}
