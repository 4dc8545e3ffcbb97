package image

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/packages"
)

// SBOMSuffix is what stands in place of an archive's .tar for its list of contents.
const SBOMSuffix = ".spdx.json"

// The parts of SPDX 2.3 that are used.
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		License       string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID       string    `json:"SPDXID"`
		Name     string    `json:"name"`
		Version  string    `json:"versionInfo,omitempty"`
		Location string    `json:"downloadLocation"`
		Analyzed bool      `json:"filesAnalyzed"`
		Refs     []spdxRef `json:"externalRefs,omitempty"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

const (
	spdxRoot  = "SPDXRef-DOCUMENT"
	spdxImage = "SPDXRef-Image"
	// spdxEpoch is the document's date: the same image has the same list.
	spdxEpoch = "1970-01-01T00:00:00Z"
)

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// SBOM is the list of what is in the image, as SPDX: Go modules by what the programs say of their build, and the distribution's packages. digest is the image's.
func (img Image) SBOM(ctx context.Context, root *packages.Root, digest string) ([]byte, error) {
	found := map[string]spdxPackage{}
	for _, f := range img.Files {
		if f.From == "" {
			continue
		}
		info, err := buildinfo.ReadFile(f.From)
		if err == nil {
			note(found, "golang", info.Main.Path, cmp.Or(info.Main.Version, "(devel)"))
			note(found, "golang", "stdlib", strings.TrimPrefix(info.GoVersion, "go"))
			for _, m := range info.Deps {
				note(found, "golang", m.Path, m.Version)
			}
			continue
		}
		p, err := root.Owner(ctx, f.From)
		if err != nil {
			return nil, fmt.Errorf("list the contents of image %s: %w", img.Ref, err)
		}
		note(found, "deb/debian", p.Name, p.Version+"?arch="+p.Architecture)
	}
	doc := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: spdxRoot, Name: img.Ref, Namespace: "https://github.com/godwit-cni/godwit/spdx/" + notInID.ReplaceAllString(digest, "-"),
		Creation:      spdxCreation{Created: spdxEpoch, Creators: []string{"Tool: godwit-lab"}},
		Packages:      []spdxPackage{{ID: spdxImage, Name: img.Ref, Version: digest, Location: "NOASSERTION"}},
		Relationships: []spdxRelationship{{From: spdxRoot, Type: "DESCRIBES", To: spdxImage}},
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		doc.Packages = append(doc.Packages, found[id])
		doc.Relationships = append(doc.Relationships, spdxRelationship{From: spdxImage, Type: "CONTAINS", To: id})
	}
	return json.MarshalIndent(doc, "", " ")
}

// note adds a package once; version may have a purl's qualifiers behind a question mark.
func note(found map[string]spdxPackage, kind, name, version string) {
	plain, _, _ := strings.Cut(version, "?")
	id := "SPDXRef-" + notInID.ReplaceAllString(kind+"-"+name+"-"+plain, "-")
	found[id] = spdxPackage{ID: id, Name: name, Version: plain, Location: "NOASSERTION", Refs: []spdxRef{{
		Category: "PACKAGE-MANAGER", Type: "purl", Locator: "pkg:" + kind + "/" + name + "@" + strings.NewReplacer("+", "%2B", ":", "%3A").Replace(version),
	}}}
}

// WriteSBOM writes the list beside an archive.
func (img Image) WriteSBOM(ctx context.Context, root *packages.Root, archive, digest string) error {
	text, err := img.SBOM(ctx, root, digest)
	if err != nil {
		return err
	}
	if err := os.WriteFile(strings.TrimSuffix(archive, ".tar")+SBOMSuffix, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write what is in image %s: %w", img.Ref, err)
	}
	return nil
}
