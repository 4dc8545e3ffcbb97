package kubevirt

import (
	"context"
	"io"
	"iter"

	corev1 "k8s.io/api/core/v1"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// Launchers reach the launcher programs in pods. The lab's is Guests; the test of the order of events has one without QEMU.
type Launchers interface {
	// Decorate adds the container compute to a launcher's pod, with what it needs.
	Decorate(pod *corev1.Pod, memoryMiB int)
	// Connect returns the launcher in a pod that runs, as soon as it answers.
	Connect(ctx context.Context, pod *corev1.Pod) (Launcher, error)
	// Relay lets the launcher in source send to that in target, until ctx ends.
	Relay(ctx context.Context, source, target *corev1.Pod) (Relay, error)
}

// Launcher does in a pod what virt-handler and virt-launcher do there: see guest.Client.
type Launcher interface {
	Status(ctx context.Context) (guest.Status, error)
	Events(ctx context.Context, after int) iter.Seq2[guest.Event, error]
	Plumb(ctx context.Context, nics []guest.NIC) ([]guest.Plumbed, error)
	Start(ctx context.Context, d guest.Domain) error
	Incoming(ctx context.Context, d guest.Domain, in guest.Incoming) error
	Plug(ctx context.Context, network string) error
	Unplug(ctx context.Context, network string) error
	Migrate(ctx context.Context, m guest.Migration) error
	ContinueMigration(ctx context.Context) error
	StartPostCopy(ctx context.Context) error
	CancelMigration(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Shutdown(ctx context.Context) error
	Leave(ctx context.Context) error
	Kill(ctx context.Context) error
	Close()
}

// Relay carries a migration's stream: see guest.Relay.
type Relay interface {
	io.Closer
	// Cut breaks the stream.
	Cut()
}
