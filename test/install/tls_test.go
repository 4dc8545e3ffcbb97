package install

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/fixture"
)

// Of the databases, and of the gate to the southbound one for administrators.
const nbPort, sbPort, gatePort = 6641, 6642, 6645

// remotes are the databases on nodes, as yamls/install.yaml has their ports.
func remotes(l *lab.Lab, port int, nodes []string) string {
	var all []string
	for _, name := range nodes {
		all = append(all, fmt.Sprintf("ssl:%s:%d", l.NodeIPs(name)[0], port))
	}
	return strings.Join(all, ",")
}

// podOn finds the pod of a component on a node.
func podOn(ctx context.Context, client kubernetes.Interface, component, node string) (*corev1.Pod, error) {
	list, err := client.CoreV1().Pods(lab.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/component=" + component, FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			return &list.Items[i], nil
		}
	}
	return nil, fmt.Errorf("no pod of %s is on %s", component, node)
}

// nodeCertificate: who has a node's certificate and key reads the southbound database, changes no other node's Chassis, and gets nowhere else.
func nodeCertificate(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	pod, err := podOn(t.Context(), client, "ovn-controller", "node1")
	if err != nil {
		t.Fatal(err)
	}
	const dir = "/etc/godwit/tls/"
	seconds := 30 // for what is answered, on any machine
	intruder := func(tool, db string, command ...string) (string, error) {
		args := []string{"-n", lab.Namespace, "exec", pod.Name, "--", tool, "--timeout=" + fmt.Sprint(seconds), "--private-key=" + dir + "tls.key", "--certificate=" + dir + "tls.crt", "--ca-cert=" + dir + "ca.crt", "--db=" + db}
		return fixture.Kubectl(t.Context(), l, append(args, command...)...)
	}
	if said, err := intruder("ovn-sbctl", remotes(l, sbPort, l.NodeNames()), "--bare", "--columns=name", "list", "chassis"); err != nil || !strings.Contains(said, "node2") {
		t.Fatalf("the certificate does not even let its owner read: %q, %v", said, err)
	}
	for _, change := range [][]string{{"set", "chassis", "node2", "external_ids:stolen=yes"}, {"chassis-del", "node2"}, {"set-connection", "ptcp:7777"}} {
		if said, err := intruder("ovn-sbctl", remotes(l, sbPort, l.NodeNames()), change...); err == nil || !strings.Contains(said, `RBAC rules for client \"node1\" role \"ovn-controller\" prohibit`) {
			t.Errorf("%v: %q, %v, want RBAC's refusal", change, said, err)
		}
	}
	seconds = 5 // of what is refused it is the whole of it that passes
	for tool, db := range map[string]string{"ovn-nbctl": remotes(l, nbPort, l.NodeNames()), "ovn-sbctl": remotes(l, gatePort, l.NodeNames())} {
		if said, err := intruder(tool, db, "show"); err == nil {
			t.Errorf("%s shows %q, want it refused", tool, said)
		}
	}
	for _, port := range []string{"tcp:%s:6641", "tcp:%s:6642", "tcp:%s:6643", "tcp:%s:6644", "tcp:%s:6645"} { // without a certificate
		if said, err := intruder("ovn-sbctl", fmt.Sprintf(port, l.NodeIPs("node1")[0]), "--timeout=1", "show"); err == nil {
			t.Errorf("%s shows %q without TLS", port, said)
		}
	}
}

// onlyListener: whatever somebody lets the southbound database listen on besides, or without the role, is taken back.
func onlyListener(t *testing.T, l *lab.Lab) {
	sbctl := func(command ...string) (string, error) {
		return inCentral(t.Context(), l, "ovn-central-0", "sb", slices.Concat([]string{"ovn-sbctl", "--no-leader-only", "--timeout=30"}, command)...)
	}
	const want = "ovn-controller pssl:6642"
	listeners := func() error {
		said, err := sbctl("--bare", "--columns=role,target", "list", "connection")
		if got := strings.Join(strings.Fields(said), " "); err == nil && got != want {
			err = fmt.Errorf("listeners are %q, want %q", got, want)
		}
		return err
	}
	eventually(t, listeners)
	if _, err := sbctl("set-connection", "pssl:6642", "ptcp:7777"); err != nil {
		t.Fatal(err)
	}
	eventually(t, listeners)
}
