package packages

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ownersFile is what a tree says of the packages that it was made of.
const ownersFile = "packages.json"

// Package is a Debian package, as its control file has it.
type Package struct {
	Name         string   `json:"name"`
	Version      string   `json:"version"`
	Architecture string   `json:"architecture"`
	Files        []string `json:"files,omitempty"`
}

// inventory reads control file and list of a .deb. Paths are those of a merged /usr, without a slash before.
func inventory(ctx context.Context, deb string) (Package, error) {
	var p Package
	fields, err := exec.CommandContext(ctx, "dpkg-deb", "--show", "--showformat=${Package}\t${Version}\t${Architecture}", deb).Output()
	if err != nil {
		return p, fmt.Errorf("read the control file of %s: %w", filepath.Base(deb), err)
	}
	parts := strings.Split(string(fields), "\t")
	if len(parts) != 3 {
		return p, fmt.Errorf("read the control file of %s: got %q", filepath.Base(deb), fields)
	}
	p.Name, p.Version, p.Architecture = parts[0], parts[1], parts[2]
	list, err := exec.CommandContext(ctx, "dpkg-deb", "--contents", deb).Output()
	if err != nil {
		return p, fmt.Errorf("list the files of %s: %w", filepath.Base(deb), err)
	}
	for line := range strings.Lines(string(list)) {
		_, name, found := strings.Cut(line, " ./")
		if !found || !strings.HasPrefix(line, "-") {
			continue
		}
		p.Files = append(p.Files, merged(strings.TrimSpace(name)))
	}
	return p, nil
}

// merged is a path as a system with a merged /usr has it.
func merged(name string) string {
	top, _, _ := strings.Cut(name, "/")
	if slices.Contains([]string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}, top) {
		return "usr/" + name
	}
	return name
}

func writeInventory(dir string, all []Package) error {
	text, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("note which packages were unpacked: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, ownersFile), text, 0o644); err != nil {
		return fmt.Errorf("note which packages were unpacked: %w", err)
	}
	return nil
}

// Owner is the package that a file is of: one of the tree, or, of the machine, one that dpkg has installed. The result has no Files.
func (r *Root) Owner(ctx context.Context, file string) (Package, error) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return Package{}, fmt.Errorf("find the package of %s: %w", file, err)
	}
	tree, err := filepath.EvalSymlinks(r.dir)
	if err != nil {
		return Package{}, fmt.Errorf("find the package of %s: %w", file, err)
	}
	if inside, ok := strings.CutPrefix(real, tree+"/"); ok {
		return r.treeOwner(inside)
	}
	return hostOwner(ctx, real)
}

func (r *Root) treeOwner(inside string) (Package, error) {
	text, err := os.ReadFile(filepath.Join(r.dir, ownersFile))
	if err != nil {
		return Package{}, fmt.Errorf("read which packages were unpacked: %w", err)
	}
	var all []Package
	if err := json.Unmarshal(text, &all); err != nil {
		return Package{}, fmt.Errorf("read which packages were unpacked: %w", err)
	}
	for _, p := range all {
		if slices.Contains(p.Files, inside) {
			return Package{Name: p.Name, Version: p.Version, Architecture: p.Architecture}, nil
		}
	}
	return Package{}, fmt.Errorf("no package of %s has the file %s", r.dir, inside)
}

// hostOwner asks dpkg, which knows a file by the path that its package has it under.
func hostOwner(ctx context.Context, file string) (Package, error) {
	said, err := exec.CommandContext(ctx, "dpkg-query", "--search", file).Output()
	if err != nil {
		said, err = exec.CommandContext(ctx, "dpkg-query", "--search", strings.TrimPrefix(file, "/usr")).Output()
	}
	if err != nil {
		return Package{}, fmt.Errorf("find the package of %s: dpkg-query: %w", file, err)
	}
	name, _, _ := strings.Cut(string(said), ": ")
	fields, err := exec.CommandContext(ctx, "dpkg-query", "--show", "--showformat=${Package}\t${Version}\t${Architecture}", name).Output()
	parts := strings.Split(string(fields), "\t")
	if err != nil || len(parts) != 3 {
		return Package{}, fmt.Errorf("read the version of package %s: %q: %w", name, fields, err)
	}
	return Package{Name: parts[0], Version: parts[1], Architecture: parts[2]}, nil
}
