package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount mounts the hierarchies below target, an existing directory, as this process's cgroup namespace shows them. like are the hierarchies
// outside, from Hierarchies. In version 2 this process is moved to a group "init" first: the root of a namespace is an ordinary group, and
// one with processes cannot hand controllers to its children.
func Mount(target string, like []string) error {
	if len(like) == 0 {
		if err := unix.Mount("cgroup2", target, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount the control groups: %w", err)
		}
		leaf := filepath.Join(target, "init")
		if err := os.Mkdir(leaf, 0o755); err != nil && !os.IsExist(err) {
			return fmt.Errorf("make control group init: %w", err)
		}
		if err := Enter([]string{leaf}); err != nil {
			return err
		}
		return handDown(target)
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a directory for control groups: %w", err)
	}
	for _, controllers := range like {
		name := strings.TrimPrefix(controllers, "name=")
		dir := filepath.Join(target, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make a mount point for control groups: %w", err)
		}
		options := controllers
		if strings.HasPrefix(controllers, "name=") {
			options = "none," + controllers
		}
		if err := unix.Mount("cgroup", dir, "cgroup", 0, options); err != nil {
			return fmt.Errorf("mount control groups of %s: %w", controllers, err)
		}
		if parts := strings.Split(name, ","); len(parts) > 1 {
			for _, p := range parts {
				if err := os.Symlink(name, filepath.Join(target, p)); err != nil {
					return fmt.Errorf("link control groups of %s: %w", p, err)
				}
			}
		}
	}
	return nil
}

// Hierarchies lists the mounted version 1 hierarchies by their controllers, for Mount; none in version 2.
func Hierarchies() ([]string, error) {
	v2, err := V2()
	if err != nil || v2 {
		return nil, err
	}
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, h := range hs {
		names = append(names, h.controllers)
	}
	return names, nil
}
