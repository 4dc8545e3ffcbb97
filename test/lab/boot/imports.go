package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godwit-cni/godwit/test/lab/image"
)

// Unimported names the archives in a directory of images that a node lacks, or has in another version. root is the node's root directory, or one with
// the node's var in it.
func Unimported(images, root string) ([]string, error) {
	paths, err := filepath.Glob(images + "/*.tar")
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var lacking []string
	for _, p := range paths {
		want, err := os.ReadFile(p + image.DigestSuffix)
		if err != nil {
			return nil, fmt.Errorf("read an image's digest: %w", err)
		}
		have, err := os.ReadFile(importMark(root, filepath.Base(p)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the digest of an imported image: %w", err)
		}
		if !bytes.Equal(want, have) {
			lacking = append(lacking, filepath.Base(p))
		}
	}
	return lacking, nil
}

// ImportArgv is the command that imports an archive, on the node.
func ImportArgv(archive string) []string {
	return []string{"ctr", "--namespace=k8s.io", "images", "import", filepath.Join(innerImages, archive)}
}

// MarkImported notes that a node has the archive in its present version.
func MarkImported(images, root, archive string) error {
	digest, err := os.ReadFile(filepath.Join(images, archive+image.DigestSuffix))
	if err != nil {
		return fmt.Errorf("read an image's digest: %w", err)
	}
	if err := os.WriteFile(importMark(root, archive), digest, 0o644); err != nil {
		return fmt.Errorf("note the import of an image: %w", err)
	}
	return nil
}

// importMark is beside containerd's data, so that either both survive or none.
func importMark(root, archive string) string {
	return filepath.Join(root, "var/lib/containerd", "lab-"+archive+image.DigestSuffix)
}
