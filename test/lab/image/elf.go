package image

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// libraryDirs are where a dynamic loader looks by default, on Debian and its kin and on others.
func libraryDirs() []string {
	dirs, err := filepath.Glob("/usr/lib/*-linux-gnu*")
	if err != nil {
		dirs = nil
	}
	return append(dirs, "/usr/lib64", "/usr/lib")
}

// Program is a dynamically linked program, at path in the image, with the loader and all libraries that it needs. extra are directories to look
// for libraries in before the machine's own.
func Program(path, from string, extra []string) ([]File, error) {
	f, err := elf.Open(from)
	if err != nil {
		return nil, fmt.Errorf("read program %s: %w", from, err)
	}
	defer func() { _ = f.Close() }()
	files := []File{{Path: path, From: from}}
	loader, err := interpreter(f)
	if err != nil {
		return nil, fmt.Errorf("read program %s: %w", from, err)
	}
	if loader != "" {
		files = append(files, File{Path: loader, From: loader})
	}
	seen := map[string]bool{filepath.Base(loader): true}
	libs, err := libraries(f, append(extra, libraryDirs()...), seen)
	if err != nil {
		return nil, fmt.Errorf("find the libraries of %s: %w", from, err)
	}
	return append(files, libs...), nil
}

// interpreter is the path of the dynamic loader, or empty for a static program.
func interpreter(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", fmt.Errorf("read the loader's name: %w", err)
		}
		return string(b[:max(0, len(b)-1)]), nil // ends with a NUL
	}
	return "", nil
}

func libraries(f *elf.File, dirs []string, seen map[string]bool) ([]File, error) {
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	var files []File
	for _, name := range needed {
		if seen[name] {
			continue
		}
		seen[name] = true
		from, err := findLibrary(name, dirs)
		if err != nil {
			return nil, err
		}
		lib, err := elf.Open(from)
		if err != nil {
			return nil, fmt.Errorf("read library %s: %w", from, err)
		}
		more, err := libraries(lib, dirs, seen)
		if err := errors.Join(err, lib.Close()); err != nil {
			return nil, err
		}
		// All where the machine's own loader looks, which is in the image too.
		files = append(append(files, File{Path: filepath.Join(libraryDirs()[0], name), From: from}), more...)
	}
	return files, nil
}

func findLibrary(name string, dirs []string) (string, error) {
	for _, d := range dirs {
		p := filepath.Join(d, name)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("library %s: %w in %v", name, fs.ErrNotExist, dirs)
}
