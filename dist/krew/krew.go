// Package krew makes what krew, kubectl's manager of plugins, installs `kubectl ovn` by: an archive for each platform and the manifest that names them. `make krew VERSION=v1.2.3` makes
// them for a release.
package krew

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Platform is one that the plugin is built for, in Go's words.
type Platform struct{ OS, Arch string }

// Platforms are those of a release.
func Platforms() []Platform {
	return []Platform{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}, {"windows", "amd64"}}
}

// Binary is the plugin's file in the archive. krew makes kubectl-ovn of it, by the manifest's name.
func (p Platform) Binary() string {
	if p.OS == "windows" {
		return "kubectl-ovn.exe"
	}
	return "kubectl-ovn"
}

// Archive is the name of a release's archive for the platform.
func (p Platform) Archive(version string) string {
	return fmt.Sprintf("kubectl-ovn_%s_%s_%s.tar.gz", version, p.OS, p.Arch)
}

// Pack makes an archive of the plugin and its licence, the same bytes from the same bytes.
func Pack(p Platform, binary, license []byte) ([]byte, error) {
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	w := tar.NewWriter(zip)
	for _, f := range []struct {
		name string
		mode int64
		data []byte
	}{{p.Binary(), 0o755, binary}, {"LICENSE", 0o644, license}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Format: tar.FormatUSTAR}); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.name, err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.name, err)
		}
	}
	if err := errors.Join(w.Close(), zip.Close()); err != nil {
		return nil, fmt.Errorf("pack %s: %w", p.Binary(), err)
	}
	return out.Bytes(), nil
}

// release is a version as krew takes it: semantic, with a v before it.
var release = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$`)

const (
	home        = "https://github.com/godwit-cni/godwit"
	description = `Tells where a VM or a pod is in the network, and what the network did to a VM
while it moved between nodes: each live migration moment by moment, a check
before one, and a plan of a node's drain. Where OVN runs as pods of Godwit's
it traces connections, looks into OVN's databases and runs OVN's own programs.
`
	caveats = `It needs a cluster whose network is Godwit, and the right to read its objects;
what asks OVN itself needs to create pods/exec in Godwit's namespace.
`
)

// Manifest is krew's manifest of a release, for the archives of all platforms.
func Manifest(version string, archives map[Platform][]byte) ([]byte, error) {
	if !release.MatchString(version) {
		return nil, fmt.Errorf("version %q: krew wants a semantic one with a v before it, as v1.2.3", version)
	}
	var platforms []any
	for _, p := range Platforms() {
		archive, ok := archives[p]
		if !ok {
			return nil, fmt.Errorf("no archive for %s/%s", p.OS, p.Arch)
		}
		sum := sha256.Sum256(archive)
		platforms = append(platforms, map[string]any{
			"selector": map[string]any{"matchLabels": map[string]string{"os": p.OS, "arch": p.Arch}},
			"uri":      strings.Join([]string{home, "releases/download", version, p.Archive(version)}, "/"),
			"sha256":   hex.EncodeToString(sum[:]),
			"bin":      p.Binary(),
		})
	}
	return yaml.Marshal(map[string]any{
		"apiVersion": "krew.googlecontainertools.github.com/v1alpha2", "kind": "Plugin", "metadata": map[string]string{"name": "ovn"},
		"spec": map[string]any{
			"version": version, "homepage": home, "shortDescription": "What the network knows of VMs, and did to them", "description": description, "caveats": caveats, "platforms": platforms,
		},
	})
}
