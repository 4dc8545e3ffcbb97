package lab

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-cni/godwit/test/lab/boot"
	"github.com/godwit-cni/godwit/test/lab/guest/bundle"
	"github.com/godwit-cni/godwit/test/lab/guest/pod"
	"github.com/godwit-cni/godwit/test/lab/image"
	"github.com/godwit-cni/godwit/test/lab/packages"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// Images that the lab builds.
const (
	// GodwitImage is what yamls/install.yaml runs.
	GodwitImage = "docker.io/godwitcni/godwit:dev"
	// OVNImage is what yamls/ovn.yaml runs.
	OVNImage = "docker.io/godwitcni/godwit-ovn:dev"
	// BusyboxImage has busybox with all its applets, echoserver and probe, see package echo, and traffic, see package traffic.
	BusyboxImage = "docker.io/godwitcni/lab-busybox:1"
	// LauncherImage runs a virtual machine, see package guest.
	LauncherImage = pod.Image
)

// product are Godwit's own images: what is in one is said by the lists in the directory dist/images/NAME of the checkout, which its Dockerfile goes by too.
var product = []struct{ name, ref, title string }{{"godwit", GodwitImage, "Godwit"}, {"ovn", OVNImage, "Godwit OVN"}}

const containerPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build says which images are built.
type Build struct {
	// CNI and OVN are as in Config: Godwit's own image is built for CNIGodwit, that of OVN for OVNPods besides.
	CNI, OVN string
	// SBOM writes what is in each of Godwit's images beside its archive, NAME.spdx.json.
	SBOM bool
	// Version is what the programs call themselves, and a label of the images; "dev" if empty.
	Version string
}

// images are the product's that are built.
func (b Build) images() []string {
	switch {
	case b.CNI != CNIGodwit:
		return nil
	case b.OVN != OVNPods:
		return []string{"godwit"}
	}
	return []string{"godwit", "ovn"}
}

// BuildImages builds the lab's images into dir as archives NAME.tar, each with its digest in NAME.tar.digest, and returns the digests of Godwit's own, with commas in
// between. What has not changed since the last time is not written again.
func BuildImages(ctx context.Context, log *slog.Logger, dir string, b Build) (digests string, err error) {
	root, err := packages.Ensure(ctx, log)
	if err != nil {
		return "", err
	}
	top, err := source.Dir()
	if err != nil {
		return "", err
	}
	commands := append([]string{"./test/lab/echo/echoserver"}, bundle.Programs()...) // traffic among them
	for _, name := range b.images() {
		own, err := image.List(top, name, "commands")
		if err != nil {
			return "", err
		}
		for _, c := range own {
			commands = append(commands, "./cmd/"+c)
		}
	}
	programs, release, err := source.Versioned(ctx, log, b.Version, commands...)
	if err != nil {
		return "", err
	}
	defer release()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a directory for images: %w", err)
	}
	busybox, pause, err := busyboxImages(ctx, root, programs)
	if err != nil {
		return "", err
	}
	vm, err := bundle.New(ctx, log, root, programs)
	if err != nil {
		return "", err
	}
	launcher, err := vm.Image()
	if err != nil {
		return "", err
	}
	for archive, img := range map[string]image.Image{"busybox.tar": busybox, "pause.tar": pause, "launcher.tar": launcher} {
		if _, err := img.Ensure(filepath.Join(dir, archive)); err != nil {
			return "", err
		}
	}
	var all []string
	for _, p := range product {
		if !slices.Contains(b.images(), p.name) {
			continue
		}
		img, err := image.Product(top, p.name, root, programs)
		if err != nil {
			return "", err
		}
		img.Ref = p.ref
		img.Labels = map[string]string{
			"org.opencontainers.image.title": p.title, "org.opencontainers.image.source": "https://github.com/godwit-cni/godwit", "org.opencontainers.image.version": cmp.Or(b.Version, "dev"),
		}
		digest, err := img.Ensure(filepath.Join(dir, p.name+".tar"))
		if err != nil {
			return "", err
		}
		all = append(all, digest)
		if !b.SBOM {
			continue
		}
		if err := img.WriteSBOM(ctx, root, filepath.Join(dir, p.name+".tar"), digest); err != nil {
			return "", err
		}
	}
	return strings.Join(all, ","), nil
}

// busyboxImages are the image for tests' pods, and the one whose process keeps a sandbox: it ends when asked to, which pid 1 must say, so that a node
// shuts down at once.
func busyboxImages(ctx context.Context, root *packages.Root, programs string) (busybox, pause image.Image, err error) {
	program, err := root.Program("busybox")
	if err != nil {
		return busybox, pause, err
	}
	list, err := root.Command(ctx, "busybox", "--list").Output()
	if err != nil {
		return busybox, pause, fmt.Errorf("list busybox's applets: %w", err)
	}
	base := image.File{Path: "/bin/busybox", From: program}
	pause = image.Image{Ref: boot.PauseImage, Files: []image.File{base}, Entrypoint: []string{
		"/bin/busybox", "sh", "-c", "trap 'exit 0' TERM INT; /bin/busybox sleep 2147483647 & wait",
	}}
	files := []image.File{
		base, {Path: "/bin/echoserver", From: filepath.Join(programs, "echoserver")}, {Path: "/bin/probe", Link: "echoserver"},
		{Path: "/bin/traffic", From: filepath.Join(programs, "traffic")},
		{Path: "/tmp", Dir: true, Mode: 0o1777}, {Path: "/root", Dir: true, Mode: 0o700}, {Path: "/www", Dir: true},
		{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\n"), Mode: 0o644}, {Path: "/etc/group", Content: []byte("root:x:0:\n"), Mode: 0o644},
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			files = append(files, image.File{Path: "/bin/" + applet, Link: "busybox"})
		}
	}
	busybox = image.Image{Ref: BusyboxImage, Entrypoint: []string{"/bin/sh"}, Env: []string{containerPath}, Files: files}
	return busybox, pause, nil
}
