package initramfs

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// unpackers are the programs that unpack modules, by the files' suffixes. Distributions differ in whether and how they compress them.
var unpackers = map[string]string{".ko.xz": "xz", ".ko.zst": "zstd", ".ko.gz": "gzip"}

// findModules maps the names of modules below dir, as other modules call them, to their files.
func findModules(dir string) (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, _, ok := strings.Cut(d.Name(), ".ko"); ok {
			found[strings.ReplaceAll(name, "-", "_")] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the kernel's modules: %w", err)
	}
	return found, nil
}

func readModule(file string) ([]byte, error) {
	for suffix, program := range unpackers {
		if !strings.HasSuffix(file, suffix) {
			continue
		}
		out, err := exec.Command(program, "-dc", file).Output() //nolint:noctx // milliseconds
		if err != nil {
			return nil, fmt.Errorf("unpack module %s: %w: install %s on this machine", file, err, program)
		}
		return out, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	return content, nil
}

// dependencies are the modules that a module says it needs.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("it has no section .modinfo, want a kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
