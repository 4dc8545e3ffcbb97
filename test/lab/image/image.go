// Package image writes container images without a container engine: archives as docker save makes them, which containerd imports. The same
// input gives the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// File is a file of an image.
type File struct {
	// Path is absolute, in the image. Its directories are made.
	Path string
	// From is the file on this machine that has the content; it is followed if it is a link. Empty: Content is the content.
	From    string
	Content []byte
	// Link makes this a symbolic link to that path.
	Link string
	// Dir makes this a directory.
	Dir bool
	// Mode is the permission bits; 0 is 0755.
	Mode int64
}

// Image describes an image of one layer.
type Image struct {
	// Ref is the name with its tag. It should not be "latest", which kubelets would try to pull.
	Ref        string
	Files      []File
	Entrypoint []string
	Env        []string
	// Labels are the image's annotations.
	Labels map[string]string
}

type config struct {
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Config       containerConfig `json:"config"`
	RootFS       rootFS          `json:"rootfs"`
	History      []history       `json:"history"`
}

type containerConfig struct {
	Env        []string `json:"Env"`
	Entrypoint []string `json:"Entrypoint"`
	// Labels are left out where there are none.
	Labels map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	CreatedBy string `json:"created_by"`
}

type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Write writes the archive, whole or not at all, and returns the image's digest.
func (img Image) Write(archive string) (digest string, err error) {
	layer, err := os.CreateTemp("", "godwit-layer")
	if err != nil {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	defer func() { err = errors.Join(err, layer.Close()) }()
	// Nobody else opens it, and without a name it goes with this process.
	if err := os.Remove(layer.Name()); err != nil {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, sum), img.Files); err != nil {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	conf, err := json.Marshal(config{
		Architecture: runtime.GOARCH, OS: "linux", Config: containerConfig{Env: img.Env, Entrypoint: img.Entrypoint, Labels: img.Labels},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{"sha256:" + hex.EncodeToString(sum.Sum(nil))}}, History: []history{{CreatedBy: "godwit-lab"}},
	})
	if err != nil {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	digest = fmt.Sprintf("%x", sha256.Sum256(conf))
	if err := img.writeArchive(archive, layer, conf, digest); err != nil {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	return "sha256:" + digest, nil
}

func (img Image) writeArchive(archive string, layer *os.File, conf []byte, digest string) error {
	index, err := json.Marshal([]manifest{{Config: digest + ".json", RepoTags: []string{img.Ref}, Layers: []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	tmp := archive + ".new"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	err = errors.Join(
		add(w, tar.Header{Name: "manifest.json", Size: int64(len(index)), Mode: 0o644}, bytes.NewReader(index)),
		add(w, tar.Header{Name: digest + ".json", Size: int64(len(conf)), Mode: 0o644}, bytes.NewReader(conf)),
		add(w, tar.Header{Name: "layer.tar", Size: size, Mode: 0o644}, layer),
		w.Close(), out.Close(),
	)
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, archive)
}

func writeLayer(out io.Writer, files []File) error {
	w := tar.NewWriter(out)
	files = slices.SortedFunc(slices.Values(files), func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	made := map[string]bool{"/": true}
	for i, f := range files {
		if !path.IsAbs(f.Path) || i > 0 && files[i-1].Path == f.Path {
			return fmt.Errorf("file %q: want absolute paths, each once", f.Path)
		}
		if err := parents(w, made, path.Dir(f.Path)); err != nil {
			return err
		}
		if err := f.write(w); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
		made[f.Path] = true
	}
	return w.Close()
}

func parents(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	if err := parents(w, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return add(w, tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755}, nil)
}

func (f File) write(w *tar.Writer) error {
	h := tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		return add(w, h, nil)
	case f.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		return add(w, h, nil)
	case f.From == "":
		h.Size = int64(len(f.Content))
		return add(w, h, bytes.NewReader(f.Content))
	}
	src, err := os.Open(f.From)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	h.Size = fi.Size()
	return add(w, h, src)
}

// add writes one member. Everything belongs to root and is as old as Unix, so that nothing but names, modes and content matters.
func add(w *tar.Writer, h tar.Header, content io.Reader) error {
	h.ModTime, h.Format = time.Unix(0, 0), tar.FormatPAX
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	_, err := io.Copy(w, content)
	return err
}
