package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	plugin "github.com/godwit-cni/godwit/pkg/kubectl"
	"github.com/godwit-cni/godwit/test/lab"
	"github.com/godwit-cni/godwit/test/lab/source"
)

// daemonsTell: every metric of OVN and Open vSwitch that docs/metrics.md has is told by some node.
func daemonsTell(t *testing.T, l *lab.Lab) {
	top, err := source.Dir()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(top, "docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "## OVN and Open vSwitch\n")
	section, _, _ = strings.Cut(section, "\n## ")
	names := regexp.MustCompile("`(godwit_[a-z_]+)").FindAllStringSubmatch(section, -1)
	if !ok || len(names) < 20 {
		t.Fatalf("docs/metrics.md names %d metrics of OVN and Open vSwitch", len(names))
	}
	eventually(t, func() error {
		told := ""
		for _, node := range l.NodeNames() {
			for _, port := range []string{"9476", "9479"} {
				said, err := l.Exec(t.Context(), node, "curl", "-sS", "--max-time", "10", "http://127.0.0.1:"+port+"/metrics")
				if err != nil {
					return fmt.Errorf("metrics of %s, port %s: %w", node, port, err)
				}
				told += said
			}
		}
		for _, n := range names {
			if !regexp.MustCompile(`(?m)^` + n[1] + `[ {]`).MatchString(told) {
				return fmt.Errorf("nobody tells %s", n[1])
			}
		}
		for _, truth := range []string{`godwit_ovn_raft_leader{database="nb"} 1`, `godwit_ovn_raft_leader{database="sb"} 1`, "godwit_ovn_northd_active 1"} {
			if n := strings.Count(told, truth+"\n"); n != 1 {
				return fmt.Errorf("%d say %s", n, truth)
			}
		}
		if n := strings.Count(told, "godwit_ovn_controller_connected 1\n"); n != len(l.NodeNames()) {
			return fmt.Errorf("%d ovn-controllers are connected", n)
		}
		return nil
	})
}

// diagnose runs kubectl ovn diagnose as an operator does.
func diagnose(ctx context.Context, l *lab.Lab) (string, error) {
	var out strings.Builder
	cmd := plugin.Command("test") //nolint:contextcheck // it is given to ExecuteContext
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs([]string{"--kubeconfig", l.Kubeconfig(), "diagnose"})
	err := cmd.ExecuteContext(ctx)
	return out.String(), err
}

// well waits until nothing is found.
func well(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, func() error {
		said, err := diagnose(t.Context(), l)
		if err != nil || !strings.Contains(said, " 0 warn, 0 fail\n") {
			return fmt.Errorf("%w:\n%s", err, said)
		}
		t.Logf("of a cluster that is well:\n%s", said)
		return nil
	})
}

// found waits until parts of lines are.
func found(t *testing.T, l *lab.Lab, want ...string) {
	t.Helper()
	eventually(t, func() error {
		said, err := diagnose(t.Context(), l)
		if err == nil {
			return fmt.Errorf("nothing was found:\n%s", said)
		}
		for _, w := range want {
			if !strings.Contains(said, w) {
				return fmt.Errorf("%q was not found:\n%s", w, said)
			}
		}
		t.Logf("found:\n%s", said)
		return nil
	})
}

// diagnosed: nothing is found in a cluster that is well, with pods; then a pod's port that was pinned elsewhere by hand, and an ovn-controller that hangs.
func diagnosed(t *testing.T, l *lab.Lab, client kubernetes.Interface) {
	const pods, namespace = 4, "install-diagnose"
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(context.Background(), namespace, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	if _, err := client.AppsV1().Deployments(namespace).Create(t.Context(), deployment(pods), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n, err := running(t.Context(), client, namespace); err != nil || n != pods {
			return fmt.Errorf("%d of %d pods run: %w", n, pods, err)
		}
		return nil
	})
	well(t, l)
	t.Run("PinnedByHand", func(t *testing.T) { pinnedByHand(t, l, client, namespace) })
	well(t, l)
	t.Run("ControllerStopped", func(t *testing.T) {
		signal := func(ctx context.Context, name string) {
			kill := fmt.Sprintf(`for p in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null <$p/cmdline | grep -q '^ovn-controller' && kill -%s ${p#/proc/} && echo sent; done; true`, name)
			if said, err := l.Exec(ctx, "node2", "sh", "-c", kill); err != nil || !strings.Contains(said, "sent") {
				t.Errorf("SIG%s to ovn-controller of node2: %q, %v", name, said, err)
			}
		}
		signal(t.Context(), "STOP")
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience) // t.Context has ended by now
			defer cancel()
			signal(ctx, "CONT")
		})
		found(t, l, "fail  ovn-controller on node2: ask controller: ", "flows stay where they are meanwhile")
	})
	well(t, l)
}

// pinnedByHand asks for another node in a pod's row, while no controller is there to put it right.
func pinnedByHand(t *testing.T, l *lab.Lab, client kubernetes.Interface, namespace string) {
	scale := func(ctx context.Context, replicas int) {
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
		if _, err := client.AppsV1().Deployments(lab.Namespace).Patch(ctx, "godwit-controller", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Error(err)
		}
	}
	before, err := client.AppsV1().Deployments(lab.Namespace).Get(t.Context(), "godwit-controller", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) == 0 {
		t.Fatalf("pods of %s: %v", namespace, err)
	}
	pod, other := &list.Items[0], "node1"
	if pod.Spec.NodeName == other {
		other = "node2"
	}
	scale(t.Context(), 0)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience) // t.Context has ended by now
		defer cancel()
		scale(ctx, int(*before.Spec.Replicas))
	})
	eventually(t, func() error {
		controllers, err := client.CoreV1().Pods(lab.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"})
		if err == nil && len(controllers.Items) > 0 {
			err = fmt.Errorf("%d controllers are still there", len(controllers.Items))
		}
		return err
	})
	row := "pod/" + namespace + "/" + pod.Name + "/default"
	if out, err := inCentral(t.Context(), l, leaderOf(t, l, "nb"), "nb", "ovn-nbctl", "set", "Logical_Switch_Port", row, "options:requested-chassis="+other); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	found(t, l, "fail  port "+row+" asks for "+other+", and what it is of runs on "+pod.Spec.NodeName, "GodwitStalePin", "fail  no pod of the controller is there")
}
