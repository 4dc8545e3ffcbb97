package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	plugin "github.com/godwit-cni/godwit/pkg/kubectl"
	"github.com/godwit-cni/godwit/test/lab"
)

// kubectlNamespace has what is traced.
const kubectlNamespace = "install-kubectl"

// ask is a command of `kubectl ovn`, and what it must print.
type ask struct {
	args  []string
	stdin string
	// words are in what it prints, or in the error; code is its exit code.
	words []string
	code  int
}

// kubectlAsksOVN runs the commands that reach into OVN's pods.
func kubectlAsksOVN(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	start := time.Now()
	stage(t, client)
	t.Logf("the stage was set after %s", time.Since(start).Round(100*time.Millisecond))
	for _, a := range []ask{
		{args: []string{"nbctl", "ls-list"}, words: []string{"(subnet/default)"}},
		{args: []string{"nbctl", "get", "nothing"}, code: 1},
		{args: []string{"nbctl", "--", "--no-leader-only", "lsp-get-type", "pod/" + kubectlNamespace + "/web/default"}},
		{args: []string{"sbctl", "show"}, words: []string{"hostname: node3", "Port_Binding"}},
		{args: []string{"vsctl", "node1", "show"}, words: []string{"Bridge br-int"}},
		{args: []string{"vsctl", "node9", "show"}, words: []string{`nodes "node9" not found`}, code: 1},
		{args: []string{"ofctl", "node2", "--", "dump-flows", "br-int", "table=0"}, words: []string{"priority="}},
		{args: []string{"ofctl", "node2", "parse-flows", "-"}, stdin: "table=3,priority=7,actions=drop\n", words: []string{"table:3", "actions=drop"}},
		{args: []string{"dpctl", "node1", "show", "-s"}, words: []string{"lookups:"}},
		{args: []string{"appctl", "node3", "--", "-t", "ovn-controller", "connection-status"}, words: []string{"connected"}},
		{args: []string{"appctl", "node3", "version"}, words: []string{"ovs-vswitchd"}},
		{args: []string{"db", "status"}, words: []string{"OVN_Northbound: ovn-central-", "OVN_Southbound: ovn-central-", "follower", "ago", "FILE", " kB"}},
		{args: []string{"port", "web", "-o", "wide"}, words: []string{"bound to      node1, up", "on node1, OpenFlow port ", "ovn-installed"}},
		{args: []string{"port", "api", "-o", "wide"}, words: []string{"balanced by   service/install-kubectl/front/tcp"}},
		{args: []string{"port", "db", "-o", "wide"}, words: []string{"godwit_np_ingress", "permits       install-kubectl/db-from-api"}},
		{args: []string{"trace", "web", "api", "tcp", "80"}, words: []string{"switch subnet/default, from pod install-kubectl/web on node1", "arrives: at pod install-kubectl/api, by the tunnel from node1 to node2"}},
		{args: []string{"trace", "web", "api", "-6"}, words: []string{"ping from pod", "fd00:", "arrives"}},
		{args: []string{"trace", "web", "service:front"}, words: []string{"load balancer: Service install-kubectl/front to", "arrives: at pod install-kubectl/api"}},
		{args: []string{"trace", "web", "db", "tcp", "5432"}, words: []string{"dropped: pod install-kubectl/db is isolated in ingress by NetworkPolicy install-kubectl/db-from-api, and no rule permits this"}, code: 1},
		{args: []string{"trace", "api", "db", "tcp", "5432"}, words: []string{"ingress: NetworkPolicy install-kubectl/db-from-api permits it, by spec.ingress[0]", "arrives"}},
		{args: []string{"trace", "api", "192.0.2.77", "tcp", "443"}, words: []string{"leaves the pod network by node2"}},
		{args: []string{"trace", "api", "192.0.2.77", "tcp", "443", "--raw"}, words: []string{"ls_in_l2_lkup", `output to "node/`}},
	} {
		a.run(t, l)
	}
	backedUp(t, l)
	t.Logf("all commands took %s with the stage", time.Since(start).Round(100*time.Millisecond))
}

// run runs it; what is asked may take a moment to be true.
func (a ask) run(t *testing.T, l *lab.Lab) {
	t.Helper()
	var out string
	eventually(t, func() error {
		var err error
		out, err = pluginSays(t.Context(), l, a.stdin, a.args...)
		if got := plugin.ExitCode(err); got != a.code {
			return fmt.Errorf("kubectl ovn %s exits with %d, want %d: %w\n%s", strings.Join(a.args, " "), got, a.code, err, out)
		}
		if err != nil {
			out += "Error: " + err.Error() + "\n"
		}
		for _, w := range a.words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("kubectl ovn %s: want %q in:\n%s", strings.Join(a.args, " "), w, out)
			}
		}
		return nil
	})
	if len(out) > 2000 {
		out = out[:2000] + "…"
	}
	t.Logf("kubectl ovn %s\n%s", strings.Join(a.args, " "), out)
}

// pluginSays is what `kubectl ovn` prints.
func pluginSays(ctx context.Context, l *lab.Lab, stdin string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := plugin.Command("test") //nolint:contextcheck // cobra passes it
	cmd.SetArgs(append([]string{"--kubeconfig", l.Kubeconfig(), "-n", kubectlNamespace}, args...))
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&bytes.Buffer{})
	err := cmd.ExecuteContext(ctx)
	return out.String(), err
}

// backedUp: a copy of NB is a database's file with the rows of pods in it.
func backedUp(t *testing.T, l *lab.Lab) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nb.db")
	if _, err := pluginSays(t.Context(), l, "", "db", "backup", file); err != nil {
		t.Error(err)
		return
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
	}
	if !bytes.HasPrefix(text, []byte("OVSDB JSON ")) || !bytes.Contains(text, []byte("pod/"+kubectlNamespace+"/web/default")) {
		t.Errorf("the copy of %d bytes is not NB's: %.200q", len(text), text)
	}
	left, err := filepath.Glob(file + ".*")
	if err != nil || len(left) > 0 {
		t.Errorf("left beside the copy: %v, %v", left, err)
	}
}

// stage makes pods on two nodes, a Service and a NetworkPolicy, and waits until the pods run.
func stage(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}
	}
	app := func(name string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: kubectlNamespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(context.Background(), kubectlNamespace, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	grace := int64(1)
	for name, node := range map[string]string{"web": "node1", "api": "node2", "db": "node2"} {
		pod := &corev1.Pod{ObjectMeta: meta(name), Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "echo", Image: lab.BusyboxImage, Command: []string{"echoserver"}}},
		}}
		if _, err := client.CoreV1().Pods(kubectlNamespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	service := &corev1.Service{ObjectMeta: meta("front"), Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "api"}, Ports: []corev1.ServicePort{{Port: 8000, TargetPort: intstr.FromInt32(80)}},
	}}
	if _, err := client.CoreV1().Services(kubectlNamespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	api := app("api")
	policy := &networkingv1.NetworkPolicy{ObjectMeta: meta("db-from-api"), Spec: networkingv1.NetworkPolicySpec{
		PodSelector: app("db"), Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &api}}}},
	}}
	if _, err := client.NetworkingV1().NetworkPolicies(kubectlNamespace).Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n, err := running(t.Context(), client, kubectlNamespace); err != nil || n != 3 {
			return fmt.Errorf("%d of 3 pods run: %w", n, err)
		}
		return nil
	})
}
