package initramfs

import (
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/image"
	"github.com/godwit-cni/godwit/test/lab/packages"
)

// System is another disk than the lab's guest's: a kernel's modules and any files. One of them should be /init.
type System struct {
	Kernel packages.Kernel
	// Modules to have, with what they depend on: in /lib/modules, where the file order lists them in the order of loading. What the kernel has built in, or does not
	// have, is left out.
	Modules []string
	// Files of it. Directories above them are made.
	Files []image.File
}

// Write writes the archive, not compressed, file by file.
func (s System) Write(w io.Writer) error {
	var a archive
	made := map[string]bool{".": true}
	for _, d := range []string{"dev", "lib/modules"} {
		a.parents(made, d+"/x")
	}
	a.device("dev/console", 5, 1)
	order, err := addModules(&a, s.Kernel.Modules, s.Modules)
	if err != nil {
		return err
	}
	a.file("lib/modules/order", 0o644, []byte(strings.Join(order, "\n")+"\n"))
	for _, f := range s.Files {
		if err := a.add(made, f); err != nil {
			return err
		}
		if _, err := a.buf.WriteTo(w); err != nil { // a multiple of four bytes: what follows is padded right
			return fmt.Errorf("write a disk: %w", err)
		}
	}
	if _, err := w.Write(a.bytes()); err != nil {
		return fmt.Errorf("write a disk: %w", err)
	}
	return nil
}

// add adds a file once, under its first content.
func (a *archive) add(made map[string]bool, f image.File) error {
	name := strings.TrimPrefix(path.Clean(f.Path), "/")
	if made[name] {
		return nil
	}
	a.parents(made, name)
	made[name] = true
	mode := int(f.Mode)
	if mode == 0 {
		mode = 0o755
	}
	switch {
	case f.Dir:
		a.dir(name)
	case f.Link != "":
		a.link(name, f.Link)
	default:
		content := f.Content
		if f.From != "" {
			var err error
			if content, err = os.ReadFile(f.From); err != nil {
				return fmt.Errorf("add %s to a disk: %w", name, err)
			}
		}
		a.file(name, mode, content)
	}
	return nil
}

// parents makes the directories above a name that are not made yet.
func (a *archive) parents(made map[string]bool, name string) {
	var missing []string
	for d := path.Dir(name); !made[d]; d = path.Dir(d) {
		made[d] = true
		missing = append(missing, d)
	}
	for _, d := range slices.Backward(missing) {
		a.dir(d)
	}
}
