package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
	"github.com/godwit-cni/godwit/test/lab"
)

// nameServer is the tenth address of the lab's range for Services, which kubelets tell pods, and KubeVirt's DHCP server guests.
const nameServer = "10.96.0.10"

// guestFacts are what a guest says of its network.
type guestFacts struct {
	MAC string
	// MTU is the link's, MTU6 what router advertisements say.
	MTU, MTU6 int
	// Addresses are global; those with IPv4 say for how long they were lent.
	Addresses []string
	// Routers are the gateways of the default routes.
	Routers []string
	// DNS are the lines of resolv.conf.
	DNS []string
}

// A guest says which addresses, lease, MTU, MAC, routes and name servers it has: those that its Port and its Subnet say, and the same after it has moved, and after it was
// rebooted where it had moved to, when it asked for all of it anew.
func TestLifecycleGuest(t *testing.T) {
	vm := bootVM(t, lab.VMOptions{Name: "told", Node: "node1"})
	want := vm.told(t)
	boot := vm.says(t, want)
	vm.migrate(t, lab.MigrateOptions{To: vm.another(t)})
	if now := vm.says(t, want); now != boot {
		t.Errorf("the guest has boot ID %s, had %s before it moved: want it not to have been booted", now, boot)
	}
	if _, err := vm.sh(t.Context(), "reboot -f"); err != nil && !errors.Is(err, errNoAnswer) {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func(context.Context) error {
		if now := vm.says(t, want); now == boot { //nolint:contextcheck // it waits as long as it needs
			return fmt.Errorf("the guest has boot ID %s still: want it rebooted", now)
		}
		return nil
	})
	vm.untouched(t)
	consistent(t)
}

// told is what the VM's guest is to be told, by the Identity of its launcher.
func (m *machine) told(t *testing.T) guestFacts {
	t.Helper()
	pod, err := m.Launcher(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, err := v1alpha1.ParseIdentity(pod.Annotations[v1alpha1.IdentityAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	want := guestFacts{MAC: id.MAC.String(), MTU: id.MTU}
	for i, ip := range id.IPs {
		if ip.Addr().Is4() {
			want.Addresses = append(want.Addresses, ip.String()+" forever")
			want.Routers = append(want.Routers, id.Gateways[i].String())
			want.DNS = []string{"search " + m.Namespace + ".svc.cluster.local", "nameserver " + nameServer}
			continue
		}
		want.MTU6 = id.MTU
		want.Addresses = append(want.Addresses, netip.PrefixFrom(ip.Addr(), 128).String())
		want.Routers = append(want.Routers, linkLocalOf(ident.GatewayMAC(ident.SubnetSwitch(id.Subnet))).String())
	}
	return want
}

// linkLocalOf is the link-local address that a MAC gives (RFC 4291, appendix A).
func linkLocalOf(mac []byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// says waits until the guest has what it is to be told, which it may be asking for, and returns the ID of its boot.
func (m *machine) says(t *testing.T, want guestFacts) (boot string) {
	t.Helper()
	eventually(t, time.Minute, func(ctx context.Context) error {
		out, err := m.sh(ctx, "cat /proc/sys/kernel/random/boot_id; cat /sys/class/net/eth0/address; cat /sys/class/net/eth0/mtu; cat /proc/sys/net/ipv6/conf/eth0/mtu; "+
			"ip -o addr show dev eth0 scope global; ip route show default; ip -6 route show default; cat /etc/resolv.conf")
		if err != nil {
			return err
		}
		got, id, err := readFacts(out)
		if err != nil {
			return err
		}
		if want.MTU6 == 0 {
			got.MTU6 = 0 // nobody advertises anything
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("the guest of VM %s says (-want +got):\n%s", m, diff)
		}
		boot = id
		return nil
	})
	return boot
}

// readFacts reads what the guest's programs print.
func readFacts(out string) (f guestFacts, boot string, err error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) < 4 {
		return f, "", fmt.Errorf("the guest says %q, want its boot ID, MAC and MTUs first", out)
	}
	boot, f.MAC = lines[0], lines[1]
	mtu, err := strconv.Atoi(lines[2])
	mtu6, err6 := strconv.Atoi(lines[3])
	f.MTU, f.MTU6 = mtu, mtu6
	for _, line := range lines[4:] {
		words := strings.Fields(line)
		if strings.HasPrefix(line, "lab: ") { // the guest's init says what it sees
			continue
		}
		after := func(word string) string {
			i := slices.Index(words, word)
			if i < 0 || i+1 >= len(words) {
				return ""
			}
			return words[i+1]
		}
		switch {
		case after("inet") != "":
			f.Addresses = append(f.Addresses, after("inet")+" "+after("valid_lft"))
		case after("inet6") != "":
			f.Addresses = append(f.Addresses, after("inet6"))
		case after("via") != "":
			f.Routers = append(f.Routers, after("via"))
		case after("search") != "", after("nameserver") != "":
			f.DNS = append(f.DNS, strings.TrimSpace(line))
		}
	}
	return f, boot, errors.Join(err, err6)
}

// errNoAnswer: the guest's shell has not printed all that it was asked for.
var errNoAnswer = errors.New("the guest's console does not answer")

// sh has the guest's shell run a command, by its console, and returns what it prints.
func (m *machine) sh(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience(5*time.Second))
	defer cancel()
	console, err := m.Console(ctx)
	if err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, func() { _ = console.Close() })()
	defer func() { _ = console.Close() }()
	// What was printed before comes first, and the terminal shows what is typed: the marks differ each time, and are not typed as they are printed.
	mark := strconv.FormatInt(time.Now().UnixNano(), 36)
	if _, err := fmt.Fprintf(console, "\necho be''gin-%s; %s; echo e''nd-%s\n", mark, command, mark); err != nil {
		return "", fmt.Errorf("type into the console of VM %s: %w", m, err)
	}
	var seen bytes.Buffer
	for buf := make([]byte, 4096); ; {
		n, err := console.Read(buf)
		seen.Write(buf[:n])
		text := strings.ReplaceAll(seen.String(), "\r", "")
		if _, rest, ok := strings.Cut(text, "begin-"+mark+"\n"); ok {
			if answer, _, ok := strings.Cut(rest, "end-"+mark); ok {
				return answer, nil
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				err = errNoAnswer
			}
			return "", fmt.Errorf("VM %s, after %q: %w", m, command, err)
		}
	}
}
