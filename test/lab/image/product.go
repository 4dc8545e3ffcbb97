package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/packages"
)

// Lists of an image of Godwit's, in dist/images/NAME of the checkout; its Dockerfile goes by the same.
const (
	// Programs are those of distribution packages, which bring their libraries along. Files are others of theirs, by path. Commands are our own.
	Programs = "programs"
	Files    = "files"
	Commands = "commands"
)

// List reads one of the lists, a name a line, in the checkout at top.
func List(top, name, list string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(top, "dist/images", name, list))
	if err != nil {
		return nil, fmt.Errorf("read what is in image %s: %w", name, err)
	}
	return strings.Fields(string(text)), nil
}

// Product is an image of Godwit's without a name: what the lists say, from a tree of packages and a directory of our own programs. In a container of it are neither
// shell nor package manager.
func Product(top, name string, root *packages.Root, built string) (Image, error) {
	img := Image{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	seen := map[string]bool{}
	add := func(files ...File) {
		for _, f := range files {
			if !seen[f.Path] { // libraries are several programs'
				seen[f.Path] = true
				img.Files = append(img.Files, f)
			}
		}
	}
	lists := map[string][]string{}
	for _, list := range []string{Programs, Files, Commands} {
		entries, err := List(top, name, list)
		if err != nil {
			return img, err
		}
		lists[list] = entries
	}
	for _, p := range lists[Programs] {
		from, err := root.Program(p)
		if err != nil {
			return img, err
		}
		files, err := Program("/usr/bin/"+p, from, root.Libraries())
		if err != nil {
			return img, err
		}
		add(files...)
	}
	for _, f := range lists[Files] {
		from, err := root.Path(f)
		if err != nil {
			return img, err
		}
		add(File{Path: f, From: from, Mode: 0o644})
	}
	for _, c := range lists[Commands] {
		add(File{Path: "/usr/bin/" + c, From: filepath.Join(built, c)})
	}
	// Container runtimes speak of /var/run/netns; what is mounted is /run/netns. Every distribution's image has the link.
	add(File{Path: "/tmp", Dir: true, Mode: 0o1777}, File{Path: "/run", Dir: true}, File{Path: "/var/run", Link: "/run"})
	return img, nil
}
