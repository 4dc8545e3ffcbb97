package kubectl

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/pkg/ident"
)

// recording is a central pod that answers what OVN 23.03 said in testdata/trace/NAME.*: the trace, the logical flows of its ACLs, and these.
type recording struct {
	name string
	// packet is what ovn-trace was asked for.
	packet *string
}

func (r recording) run(_ context.Context, p program) error {
	file := map[string]string{"ovn-trace": ".txt", "ovn-sbctl": ".flows.json", "ovn-nbctl": ".acls.json"}[p.args[0]]
	if file == "" {
		_, err := io.WriteString(p.stdout, "Status: cluster member\nRole: follower\n")
		return err
	}
	if p.args[0] == "ovn-trace" {
		*r.packet = p.args[len(p.args)-1]
	}
	text, err := os.ReadFile(filepath.Join("testdata/trace", r.name+file))
	if err != nil {
		return err
	}
	_, err = p.stdout.Write(text)
	return err
}

// shopPod is a pod as it was when the recordings were made.
func shopPod(name, node string, number byte) *corev1.Pod {
	four, six := netip.AddrFrom4([4]byte{10, 244, 0, number}), netip.MustParseAddr(fmt.Sprintf("fd00:10:244::%d", number))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "u-1", Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	p.Annotations = map[string]string{v1alpha1.IdentityAnnotation: v1alpha1.Identity{
		PodUID: string(p.UID), Subnet: "default", IPs: []netip.Prefix{netip.PrefixFrom(four, 16), netip.PrefixFrom(six, 64)}, MAC: v1alpha1.MAC(ident.MAC(four)),
		Gateways: []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:10:244::1")}, MTU: 1442,
	}.Text()}
	return p
}

// shop is the cluster of the recordings.
func shop(t *testing.T, in containers) cluster {
	policy := func(name, app string, kind networkingv1.PolicyType) client.Object {
		return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, PolicyTypes: []networkingv1.PolicyType{kind},
		}}
	}
	service := func(name, ip string) client.Object {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80}}}}
	}
	return clusterOf(t, in, ovnPod("ovn-central-0", centralComponent, "node1"),
		shopPod("web", "node1", 2), shopPod("api", "node2", 4), shopPod("db", "node2", 5), shopPod("batch", "node1", 3),
		service("api", "10.0.0.151"), service("empty", "10.0.0.31"), policy("db-from-web", "db", networkingv1.PolicyTypeIngress), policy("batch-stays", "batch", networkingv1.PolicyTypeEgress),
		&v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.SubnetSpec{CIDRs: []string{"10.244.0.0/16", "fd00:10:244::/64"}}},
		&v1alpha1.Port{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db1"}, Spec: v1alpha1.PortSpec{Target: v1alpha1.PortTarget{Name: "db1", Network: "default"}},
			Status: v1alpha1.PortStatus{IPs: []string{"10.244.0.9"}, MAC: "0a:67:0a:f4:00:09", Subnet: "default", Node: "node1"},
		},
	)
}

// What ovn-trace said is told in words; the words are in testdata/trace-NAME.txt.
func TestTrace(t *testing.T) {
	for name, args := range map[string]string{
		"plain": "web pod:api tcp 8080", "six": "web pod:api tcp 8080 -6", "icmp": "web pod:api", "service": "web service:api", "empty": "web empty",
		"permitted": "web db tcp 5432", "dropped": "pod:api db tcp 5432", "egress": "batch pod:api tcp 80", "outside": "web 192.0.2.77 tcp 443", "node": "web 100.64.0.2 tcp 443", "gateway": "web 10.244.0.1",
	} {
		t.Run(name, func(t *testing.T) {
			var packet string
			var out bytes.Buffer
			six := strings.HasSuffix(args, " -6")
			err := shop(t, recording{name, &packet}).trace(t.Context(), &out, strings.Fields(strings.TrimSuffix(args, " -6")), traceFlags{six: six})
			golden(t, "trace-"+name+".txt", fmt.Sprintf("%s\n\n%sexit code %d\n", packet, out.String(), ExitCode(err)))
		})
	}
}

// What cannot be traced is told with what to do.
func TestTraceThatMakesNoSense(t *testing.T) {
	for args, want := range map[string]string{
		"web api tcp 80":         "api is pod shop/api as well as Service shop/api: say which, as vm:api or service:api",
		"web nobody tcp 80":      "namespace shop has no VM, pod or Service nobody",
		"web other/db tcp 80":    "namespace other has no VM, pod or Service db",
		"web host:db tcp 80":     `"host" is none of vm, pod and service`,
		"service:api db tcp 80":  "Service shop/api is neither a pod nor a VM",
		"web db tcp":             "tcp needs a port",
		"web db sctp 80":         `"sctp" is none of tcp, udp and icmp`,
		"web db icmp 80":         "icmp has no port",
		"web db tcp 0":           `"0" is no port`,
		"web 10.244.9.9 tcp 443": "dropped: 10.244.9.9 is of a Subnet, and no pod, VM or Service has it",
		"vm:db1 fd00::7 tcp 443": "VM shop/db1 and fd00::7 have no addresses of one family, IPv6",
	} {
		err := shop(t, answers{}).trace(t.Context(), io.Discard, strings.Fields(args), traceFlags{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("trace %s: %v, want %q", args, err, want)
		}
	}
}

func TestMicroflow(t *testing.T) {
	m := microflow{
		inport: "vm/shop/db1/default", srcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, dstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, src: netip.MustParseAddr("fd00::1"), dst: netip.MustParseAddr("fd00::2"),
		protocol: protocolICMP,
	}
	want := `inport == "vm/shop/db1/default" && eth.src == 02:00:00:00:00:01 && eth.dst == 02:00:00:00:00:02 && ip6.src == fd00::1 && ip6.dst == fd00::2 && ip.ttl == 64 && icmp6.type == 128 && icmp6.code == 0`
	if got := m.expression(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// Who is meant by a name or an address.
func TestFind(t *testing.T) {
	launcher := ovnPod("virt-launcher-db1-x", "none", "node1")
	launcher.Namespace, launcher.Labels = "shop", map[string]string{"kubevirt.io/domain": "db1"}
	controls := true
	launcher.OwnerReferences = []metav1.OwnerReference{{Kind: v1alpha1.KindVirtualMachineInstance, Name: "db1", Controller: &controls}}
	c := shop(t, answers{})
	if err := c.api.Create(t.Context(), launcher); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"db1":             "VM shop/db1 vm/shop/db1/default node1 0a:67:0a:f4:00:09 domain db1",
		"vm:shop/db1":     "VM shop/db1 vm/shop/db1/default node1 0a:67:0a:f4:00:09 domain db1",
		"10.244.0.9":      "VM shop/db1 vm/shop/db1/default node1 0a:67:0a:f4:00:09 domain db1",
		"pod:api":         "pod shop/api pod/shop/api/default node2 0a:67:0a:f4:00:04 domain ",
		"fd00:10:244::4":  "pod shop/api pod/shop/api/default node2 0a:67:0a:f4:00:04 domain ",
		"::ffff:10.0.0.1": "10.0.0.1    domain ",
		"10.0.0.31":       "Service shop/empty    domain ",
	} {
		e, err := c.find(t.Context(), text)
		if got := fmt.Sprintf("%s %s %s %s domain %s", e.name, e.port, e.node, e.mac, e.labels["kubevirt.io/domain"]); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}
