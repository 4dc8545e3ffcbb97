package lab

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
	// BusyboxImage has busybox with all its applets, echoserver and probe, see package echo, and traffic, see package traffic.
	BusyboxImage = "docker.io/godwitcni/lab-busybox:1"
	// LauncherImage runs a virtual machine, see package guest.
	LauncherImage = pod.Image
)

const (
	godwitArchive = "godwit.tar"
	containerPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// BuildImages builds the lab's images into dir as archives NAME.tar, each with its digest in NAME.tar.digest, and returns the Godwit image's
// digest. That image is built if the CNI is CNIGodwit. What has not changed since the last time is not written again.
func BuildImages(ctx context.Context, log *slog.Logger, dir, cni string) (godwit string, err error) {
	root, err := packages.Ensure(ctx, log)
	if err != nil {
		return "", err
	}
	commands := append([]string{"./test/lab/echo/echoserver"}, bundle.Programs()...) // traffic among them
	if cni == CNIGodwit {
		commands = append(commands, "./cmd/godwit-agent", "./cmd/godwit-controller", "./cmd/godwit-cni")
	}
	programs, release, err := source.Programs(ctx, log, commands...)
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
	if cni != CNIGodwit {
		return "", nil
	}
	img, err := godwitImage(root, programs)
	if err != nil {
		return "", err
	}
	return img.Ensure(filepath.Join(dir, godwitArchive))
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

// godwitImage has Godwit's programs and nft, which the agent drives.
func godwitImage(root *packages.Root, programs string) (image.Image, error) {
	nft, err := root.Program("nft")
	if err != nil {
		return image.Image{}, err
	}
	files, err := image.Program("/usr/bin/nft", nft, root.Libraries())
	if err != nil {
		return image.Image{}, err
	}
	for _, p := range []string{"godwit-agent", "godwit-controller", "godwit-cni"} {
		files = append(files, image.File{Path: "/usr/bin/" + p, From: filepath.Join(programs, p)})
	}
	// Container runtimes speak of /var/run/netns; what is mounted is /run/netns. Every distribution's image has the link.
	files = append(files, image.File{Path: "/tmp", Dir: true, Mode: 0o1777}, image.File{Path: "/var/run", Link: "/run"})
	return image.Image{Ref: GodwitImage, Env: []string{containerPath}, Files: files}, nil
}
