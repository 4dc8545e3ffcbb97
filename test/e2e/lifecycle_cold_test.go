package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/frame"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/netns"
	"github.com/godwit-cni/godwit/test/lab/reach"
)

// coldAttach is within how long a launcher must be in the network after it was scheduled, its VM's old node being out of service, on an idle machine.
const coldAttach = 5 * time.Second

// The power of a VM's node is cut, and somebody taints it as out of service: the VM is started elsewhere, with its addresses and its row, and is in the network at once. The node
// comes back, with an interface that says it is the VM's: it claims nothing, and not one frame of it is seen. ROUNDS says how often.
func TestLifecycleColdStandby(t *testing.T) {
	history, err := watchHistory(t.Context(), cluster.NB(), cluster.SB())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(history.close)
	m := bootVM(t, lab.VMOptions{Name: "cold"})
	for i := range number(t, "ROUNDS", 1) {
		m.fallsCold(t, i+1, history)
	}
	consistent(t)
}

// cold is what a round has measured, from the moment at which the next launcher was seen to have a node.
type cold struct{ asked, attached, answered time.Duration }

func (m *machine) fallsCold(t *testing.T, round int, h *history) {
	t.Helper()
	old, err := m.VMI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node, port := old.Status.NodeName, ident.VMPort(m.Namespace, m.Name, ident.DefaultNetwork)
	started := false
	start := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience(2*time.Minute))
		defer cancel()
		return errors.Join(cluster.Node(node).Start(ctx), outOfService(ctx, node))
	}
	crash := time.Now()
	if err := cluster.Node(node).Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !started {
			if err := start(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}
	})
	if err := outOfService(t.Context(), node, fencing); err != nil {
		t.Fatal(err)
	}
	c, next := m.rises(t, old.UID, crash)
	t.Logf("round %d: %s crashed, %s has the VM: asked for %s after its launcher was scheduled, attached after %s, answers after %s",
		round, node, next, c.asked.Round(time.Millisecond), c.attached.Round(time.Millisecond), c.answered.Round(time.Millisecond))
	if limit := patience(coldAttach); c.attached > limit {
		t.Errorf("the launcher was in the network %s after it was scheduled, want at most %s", c.attached, limit)
	}
	m.untouched(t)

	mark := h.now(port)
	started = true
	if err := start(t.Context()); err != nil {
		t.Fatal(err)
	}
	settled(t)
	m.haunted(t, node, string(old.UID))
	if _, mains := h.since(port, mark); !slices.Equal(mains, []string{next}) {
		t.Errorf("the port was claimed by %v since %s came back, want %s alone", mains, node, next)
	}
	m.untouched(t)
}

// fencing is the taint of a node of which somebody answers for it that nothing runs there.
var fencing = corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}

// outOfService leaves a node with the taint, or with none of the kind. Others change taints too.
func outOfService(ctx context.Context, node string, taint ...corev1.Taint) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		n := &corev1.Node{}
		if err := cluster.api.Get(ctx, client.ObjectKey{Name: node}, n); err != nil {
			return err
		}
		before := n.DeepCopy()
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Key == corev1.TaintNodeOutOfService })
		n.Spec.Taints = append(n.Spec.Taints, taint...)
		return cluster.api.Patch(ctx, n, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
}

// rises follows the VM's next instance from the moment at which its launcher has a node until its guest answers.
func (m *machine) rises(t *testing.T, old types.UID, crash time.Time) (c cold, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(4*time.Minute))
	defer cancel()
	var scheduled time.Time
	since := func(d *time.Duration) {
		if *d == 0 {
			*d = time.Since(scheduled)
		}
	}
	for c.asked == 0 || c.attached == 0 {
		vmi, err := m.VMI(ctx)
		if ctx.Err() != nil {
			t.Fatalf("the VM is not in the network again %s after the crash: %+v", time.Since(crash), c)
		}
		if err != nil || vmi.UID == old {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		pods, err := m.Launchers(ctx, vmi)
		if err != nil {
			t.Fatal(err)
		}
		if len(pods) > 0 && pods[0].Spec.NodeName != "" && scheduled.IsZero() {
			scheduled, node = time.Now(), pods[0].Spec.NodeName
			t.Logf("the next launcher is scheduled %s after the crash", time.Since(crash).Round(100*time.Millisecond))
		}
		if !scheduled.IsZero() {
			if row, err := m.portRow(ctx); err == nil && row.Options["requested-chassis"] == node {
				since(&c.asked)
			}
			if slices.ContainsFunc(pods[0].Status.Conditions, func(x corev1.PodCondition) bool {
				return x.Type == corev1.PodReadyToStartContainers && x.Status == corev1.ConditionTrue
			}) {
				since(&c.attached)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := m.AwaitRunning(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.AwaitAnswer(ctx); err != nil {
		t.Fatal(err)
	}
	since(&c.answered)
	return c, node
}

// haunted plugs in, on a node that has come back, what an old launcher would have there, and lets it send: nobody sees a frame of it, neither on that node nor on another.
// The same frames are seen when they come from where the VM is.
func (m *machine) haunted(t *testing.T, node, uid string) {
	t.Helper()
	port := &v1alpha1.Port{}
	if err := cluster.api.Get(t.Context(), m.Key(), port); err != nil {
		t.Fatal(err)
	}
	mac, err := net.ParseMAC(port.Status.MAC)
	if err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, nil)
	create(t, server(ns, "here", node), server(ns, "there", m.another(t, node)))
	// Announcements of the VM's address, which port security lets through, to one pod each: the guest has nothing to say to these.
	var seen atomic.Int64
	var frames [][]byte
	for _, p := range ready(t, ns, 2) {
		frames = append(frames, append(sees(t, p, mac, &seen), frame.Announcement(mac, m.ips[0])[6:]...))
	}
	launcher, err := cluster.PodNamespace(m.node(t), m.ips[0])
	if err != nil {
		t.Fatal(err)
	}
	var before int64
	eventually(t, 10*time.Second, func(context.Context) error {
		if before == 0 || seen.Load() < 2 { // the VM's node may have to hear of the pods yet
			sends(t, launcher, "eth0-nic", frames)
		}
		time.Sleep(time.Second)
		if n := seen.Load(); n < 2 || n != before { // some may be under way
			before = n
			return fmt.Errorf("two pods have seen %d frames of the VM's MAC that were sent where it is, want 2 at least, and no more after a second", n)
		}
		return nil
	})

	here, err := cluster.Namespace(node)
	if err != nil {
		t.Fatal(err)
	}
	vmi, err := m.VMI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const times = 50
	for _, version := range []string{uid, string(vmi.UID)} { // that of its own instance, and even that of the present one
		plugged(t, node, string(ident.VMPort(m.Namespace, m.Name, ident.DefaultNetwork)), version, func() {
			sends(t, here, "zombie-in", slices.Repeat(frames, times))
		})
	}
	if n := seen.Load(); n != before {
		t.Errorf("of %d frames that were sent with the VM's MAC on %s, which has come back, two pods have seen %d", 2*times*len(frames), node, n-before)
	}
}

// plugged lets an interface of a node say for a while that it is a VM's port.
func plugged(t *testing.T, node, port, version string, f func()) {
	t.Helper()
	run := func(ctx context.Context, script string) (string, error) {
		return cluster.Exec(ctx, node, "sh", "-c", script, port, version)
	}
	plug := `ip link add zombie type veth peer name zombie-in && ip link set zombie up && ip link set zombie-in up &&
		ovs-vsctl add-port br-int zombie -- set Interface zombie external_ids:iface-id="$0" external_ids:iface-id-ver="$1"`
	defer func() {
		if out, err := run(context.WithoutCancel(t.Context()), "ovs-vsctl --if-exists del-port br-int zombie; ip link del zombie"); err != nil {
			t.Errorf("%s: %s %v", node, out, err)
		}
	}()
	if out, err := run(t.Context(), plug); err != nil {
		t.Fatalf("%s: %s %v", node, out, err)
	}
	time.Sleep(time.Second) // ovn-controller has had time for it
	f()
	time.Sleep(time.Second)
	out, err := run(t.Context(), "ovs-vsctl get Interface zombie external_ids")
	if err != nil || strings.Contains(out, "ovn-installed") || !strings.Contains(out, version) {
		t.Errorf("%s: OVN has said of an interface with version %s: %s %v", node, version, out, err)
	}
}

// sends sends frames 10 ms apart.
func sends(t *testing.T, namespace, link string, frames [][]byte) {
	t.Helper()
	err := netns.Do(namespace, func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		for _, b := range frames {
			if err := frame.Send(l.Attrs().Index, b); err != nil {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("send on %s: %v", link, err)
	}
}

// sees counts the frames from a MAC that reach a pod and are for it alone, until the test ends. It returns the pod's own MAC.
func sees(t *testing.T, p reach.Pod, mac net.HardwareAddr, seen *atomic.Int64) (own net.HardwareAddr) {
	t.Helper()
	place, err := cluster.PodNamespace(p.Node, p.IPs[0])
	if err != nil {
		t.Fatal(err)
	}
	var capture *frame.Capture
	err = netns.Do(place, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		own = l.Attrs().HardwareAddr
		capture, err = frame.Open("eth0", mac)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		frames := make([]frame.Seen, 64)
		for {
			n, err := capture.Read(frames)
			for _, f := range frames[:n] {
				if bytes.Equal(f.To[:], own) {
					seen.Add(1)
				}
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	t.Cleanup(func() {
		if err := capture.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Logf("the capture in pod %s ended early, with its pod: %v", p.Name, err)
		}
	})
	return own
}
